"""`Pipeline` on a tiny CogVideoX with seeded random weights, on the CPU."""

from __future__ import annotations

import functools
import logging

import numpy as np
import pytest
import torch

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import (
    BackendUnavailableError,
    EngineLoadError,
    InvalidInputError,
    UnsupportedError,
)
from rainfusion_trt.models import VideoSize, get_model

# On the CPU also beside a GPU; piecewise would have one window of clips as small as these.
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu", method="rainfusion")
SIZE = VideoSize(frames=9, height=64, width=96)
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 3,
    "output_type": "np",
}


@pytest.fixture
def pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def pipeline(pipe):
    with Pipeline(pipe=pipe, backend="torch") as made:
        yield made


def plain_frames(pipe, seed: int = 0) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return pipe(**CALL, generator=generator, max_sequence_length=16).frames


def test_same_seed_same_video(pipeline):
    first = pipeline(**CALL, seed=7).frames
    again = pipeline(**CALL, generator=torch.Generator().manual_seed(7)).frames
    other = pipeline(**CALL, seed=8).frames
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-2


def test_sparsity_zero_is_plain_diffusers(pipe):
    # 3 x 8 x 12 video tokens: three blocks, of which a sparse head leaves some out.
    call = {**CALL, "height": 128, "width": 192, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    expected = pipe(**call, generator=generator, max_sequence_length=16).frames
    with Pipeline(pipe=pipe, backend="torch", sparsity=0.0) as pipeline:
        dense = pipeline(**call, seed=0)
        sparse = pipeline(**call, seed=0, sparsity=0.5).frames
    assert dense.sparsity == (0.0, 0.0, 0.0)
    # Unit scale. Guidance multiplies float32 rounding (2^-24, some hundred terms a sum) by 6 in
    # each of three steps.
    torch.testing.assert_close(dense.frames, expected, atol=1e-4, rtol=0)
    assert (sparse - expected).abs().max() > 1e-2


def test_close_gives_the_transformer_back(pipe):
    transformer = pipe.transformer
    expected = plain_frames(pipe)
    with Pipeline(pipe=pipe, backend="torch") as pipeline:
        pipeline(**CALL, seed=0)
    assert pipe.transformer is transformer
    np.testing.assert_array_equal(plain_frames(pipe), expected)


def test_default_schedule_starts_dense(pipeline):
    assert pipeline(**CALL, seed=0).sparsity == (0.0, 0.5, 0.5)


@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_steps_are_counted_with_and_without_guidance(pipeline, guidance_scale):
    seen = []
    set_sparsity = pipeline.denoiser.set_sparsity
    pipeline.denoiser.set_sparsity = lambda value: (seen.append(value), set_sparsity(value))
    out = pipeline(**CALL, seed=0, guidance_scale=guidance_scale, schedule=[0.1, 0.2, 0.3])
    assert seen == [0.1, 0.2, 0.3]
    assert out.sparsity == (0.1, 0.2, 0.3)


def test_custom_timesteps_set_the_number_of_steps(pipeline):
    class Scheduler(type(pipeline.pipe.scheduler)):
        def set_timesteps(self, num_inference_steps=None, device=None, timesteps=None):
            super().set_timesteps(len(timesteps or range(num_inference_steps)), device)

    pipeline.pipe.scheduler = Scheduler.from_config(pipeline.pipe.scheduler.config)
    out = pipeline(**CALL, seed=0, timesteps=[999, 600, 400, 200], schedule=[0, 0.1, 0.2, 0.3])
    assert out.sparsity == (0.0, 0.1, 0.2, 0.3)


def test_users_callback_sees_every_step_and_can_change_latents(pipeline):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append((step, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    frames = pipeline(**CALL, seed=0, callback_on_step_end=callback).frames
    assert steps == [(i, ["latents"]) for i in range(3)]
    # All clips from zero latents are alike, whatever the seed.
    other = pipeline(**CALL, seed=1, callback_on_step_end=callback).frames
    np.testing.assert_allclose(frames, other, atol=1e-6)


def test_diffusers_callback_class_and_interrupt(pipeline):
    from diffusers.callbacks import PipelineCallback

    class StopAfterTwo(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]

        def callback_fn(self, pipe, step, timestep, tensors):
            assert set(tensors) == {"prompt_embeds"}
            pipe._interrupt = step == 1
            return tensors

    callback = StopAfterTwo(cutoff_step_ratio=None, cutoff_step_index=5)
    out = pipeline(**CALL, seed=0, callback_on_step_end=callback)
    assert out.sparsity == (0.0, 0.5)


def test_timings_of_every_step(pipeline):
    out = pipeline(**CALL, seed=0, profile=True)
    assert [row.step for row in out.timings] == [0, 1, 2]
    assert [row.sparsity for row in out.timings] == [0.0, 0.5, 0.5]
    assert [row.density for row in out.timings] == [step.density for step in out.steps] == [1.0] * 3
    assert all(0 < row.transformer_ms < row.total_ms for row in out.timings)
    assert pipeline(**CALL, seed=0).timings == ()


def test_checkpoint_directory(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    expected = plain_frames(pipe)
    with Pipeline(
        "cogvideox", checkpoint=tmp_path, backend="torch", sparsity=0.0, dtype=torch.float32
    ) as pipeline:
        pipeline.pipe.set_progress_bar_config(disable=True)
        np.testing.assert_allclose(pipeline(**CALL, seed=0).frames, expected, atol=1e-4)


def test_the_log_names_backend_device_and_schedule(pipe, caplog):
    with caplog.at_level(logging.INFO, "rainfusion_trt"), Pipeline(pipe=pipe) as pipeline:
        pipeline(**CALL, seed=0)
    assert "torch on cpu: PyTorch" in caplog.text
    assert "sparsity per step: 1 x 0, 2 x 0.5" in caplog.text


def test_plain_tuple(pipeline):
    (frames,) = pipeline(**CALL, seed=0, return_dict=False)
    assert frames.shape == (1, 9, 64, 96, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"schedule": [0.5]}, "1 values for 3 steps"),
        ({"schedule": lambda step, steps: 2.0}, "sparsity of step 0 is 2.0"),
        ({"sparsity": 0.5, "schedule": [0, 0, 0]}, "not both"),
        ({"seed": 1, "generator": torch.Generator()}, "not both"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"timesteps": [900, 500]}, "CogVideoXDDIMScheduler takes none of the caller's"),
        ({"timesteps": []}, "timesteps is empty"),
        ({"timesteps": torch.tensor(500)}, "timesteps is tensor.*one for each step"),
    ],
)
def test_bad_calls_fail_before_work_starts(pipeline, call, words):
    pipeline.pipe.encode_prompt = None  # would fail otherwise
    with pytest.raises(InvalidInputError, match=words):
        pipeline(**{**CALL, **call})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"backend": "vulkan"}, InvalidInputError, "'vulkan' is unknown: use auto, tensorrt"),
        ({"backend": "onnxruntime"}, InvalidInputError, "needs onnx="),
        ({"backend": "tensorrt"}, InvalidInputError, "needs engine="),
        ({"model": "sora"}, InvalidInputError, "'sora' is unknown"),
        ({"checkpoint": "x"}, InvalidInputError, "either checkpoint="),
        ({"engine": "/no/such"}, EngineLoadError, "not an engine folder"),
        ({"onnx": "/no/such.onnx"}, InvalidInputError, "no ONNX file at"),
        ({"cuda_graph": True}, UnsupportedError, "cuda_graph=True needs an engine"),
        ({"cpu_offload": True}, UnsupportedError, "runs on the CPU"),
        ({"sparsity": -0.1}, InvalidInputError, "sparsity is -0.1"),
        ({"dense_fraction": 1.5}, InvalidInputError, "dense_fraction is 1.5"),
        ({"method": "magic"}, InvalidInputError, "method='magic'"),
    ],
)
def test_bad_constructions(pipe, arguments, error, words):
    with pytest.raises(error, match=words):
        Pipeline(pipe=pipe, **arguments)
    assert type(pipe.transformer).__name__ == "CogVideoXTransformer3DModel"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_asking_for_a_gpu_that_is_not_there(pipe):
    with pytest.raises(InvalidInputError, match="torch finds no CUDA GPU"):
        Pipeline(pipe=pipe, device="cuda")


def test_neither_checkpoint_nor_pipe():
    with pytest.raises(InvalidInputError, match="checkpoint="):
        Pipeline("cogvideox")


def test_fallback_only_when_asked_for(pipe, tmp_path, monkeypatch, caplog):
    """An ONNX file whose runtime is missing: an error, or the torch backend with a warning."""
    from rainfusion_trt.graph_file import GraphAccount
    from rainfusion_trt.operator.settings import AttentionSettings
    from rainfusion_trt.runtime import artifacts, graphs, ort

    account = GraphAccount(
        model="cogvideox-5b",
        component="transformer",
        config=dict(pipe.transformer.config),
        size=str(SIZE),
        dynamic=True,
        settings=AttentionSettings("rainfusion"),
    )
    exported = graphs.Graph("the file", account)
    monkeypatch.setattr(artifacts, "graph_of_onnx", lambda path: exported)

    def missing():
        raise BackendUnavailableError("onnxruntime is not installed")

    monkeypatch.setattr(ort, "_import_runtime", missing)
    arguments = {"pipe": pipe, "onnx": tmp_path / "model.onnx", "sparsity": 0.0}
    with pytest.raises(BackendUnavailableError, match="not installed"):
        Pipeline(**arguments)
    with Pipeline(**arguments, allow_fallback=True) as pipeline:
        assert pipeline.backend == "torch"
    assert "falling back to torch" in caplog.text
