"""Results say what ran; what cannot run sparse, or is not finite, ends the run."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
import threading
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch._dynamo
from diffusers.configuration_utils import FrozenDict
from torch._dynamo.utils import counters

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import DenseAttentionError, InvalidInputError, NotFiniteError
from rainfusion_trt.models import VideoSize, get_model, model_names
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.routing import disable
from rainfusion_trt.runtime.base import TensorInfo
from rainfusion_trt.runtime.denoiser import GraphDenoiser, complete_config
from rainfusion_trt.runtime.report import CallReport, StepReport

# On the CPU also beside a GPU; piecewise would have one window of clips as small as these.
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu", method="rainfusion")
SIZE = VideoSize(frames=9, height=64, width=96)
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 2,
    "output_type": "latent",
    "seed": 0,
}


@pytest.fixture
def pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def pipeline(pipe):
    with Pipeline(pipe=pipe) as made:
        yield made


def without_density(step: StepReport) -> StepReport:
    return dataclasses.replace(step, density=None)


@pytest.fixture
def densities(monkeypatch) -> list[float]:
    """Mean density of every attention that ran, by the classification of its q and k."""
    seen, operator = [], torch.ops.rainfusion.attention_measured

    def record(q, k, v, grid, sparsity, kv_len, *flat):
        settings = AttentionSettings.from_flat(*flat)
        plan = reference.classify_heads(
            q, k, grid.shape, sparsity=sparsity, kv_len=kv_len, **settings.attributes()
        )
        seen.append(plan.density.mean().item())
        return operator(q, k, v, grid, sparsity, kv_len, *flat)

    monkeypatch.setattr(torch.ops.rainfusion, "attention_measured", record)
    return seen


# Enough blocks of keys that some can be left out; of SIZE every block is needed.
LARGER = VideoSize(frames=25, height=128, width=128)
LARGER_CALL = {**CALL, "num_frames": 25, "height": 128, "width": 128}


@pytest.fixture
def larger_pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=LARGER)
    made.set_progress_bar_config(disable=True)
    return made


def test_steps_say_what_ran(larger_pipe, densities):
    with Pipeline(pipe=larger_pipe) as pipeline:
        out = pipeline(**LARGER_CALL)
    assert out.steps[0] == StepReport(0, 0.0, 2, 0, density=1.0)
    assert without_density(out.steps[1]) == StepReport(1, 0.5, 2, 0)
    assert out.sparsity == (0.0, 0.5)
    assert densities[:2] == [1.0, 1.0] and len(densities) == 4
    assert out.steps[1].density == pytest.approx(sum(densities[2:]) / 2, abs=1e-6)
    assert 0.3 < out.steps[1].density < 0.99


def test_a_clip_so_small_that_every_block_is_needed(pipeline):
    assert [step.density for step in pipeline(**CALL).steps] == [1.0, 1.0]


def test_density_of_several_calls_and_of_dense_attentions():
    sparse = CallReport(routed=3, dense=1, density=torch.tensor([0.4]))
    assert StepReport.of(2, 0.5, [sparse]).density == pytest.approx((3 * 0.4 + 1) / 4)
    other = CallReport(routed=2, density=torch.tensor([0.6]))
    assert StepReport.of(2, 0.5, [sparse, other]).density == pytest.approx((1.2 + 1 + 1.2) / 6)
    assert StepReport.of(2, 0.5, [CallReport(routed=2)]).density is None  # an engine
    assert StepReport.of(2, 0.0, [CallReport(routed=2)]).density == 1.0
    assert StepReport.of(2, 0.5, [CallReport(routed=0, dense=2)]).density == 1.0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_compiled(larger_pipe, caplog):
    """The same frames; steps and sparsities compile nothing anew; blocks are as they were after."""
    blocks = larger_pipe.transformer.transformer_blocks
    with Pipeline(pipe=larger_pipe) as pipeline:
        plain = pipeline(**LARGER_CALL)
    torch._dynamo.reset()
    counters.clear()
    with caplog.at_level(logging.INFO), Pipeline(pipe=larger_pipe, compile=True) as pipeline:
        out = pipeline(**LARGER_CALL)
        graphs = counters["stats"]["unique_graphs"]
        sparser = pipeline(**LARGER_CALL, sparsity=0.8)
        assert counters["stats"]["unique_graphs"] == graphs > 0
    assert "2 compiled blocks" in caplog.text
    torch.testing.assert_close(out.frames, plain.frames, atol=1e-4, rtol=0)
    assert [s.density for s in out.steps] == pytest.approx([s.density for s in plain.steps])
    assert sparser.steps[1].density < out.steps[1].density
    assert all(block._compiled_call_impl is None for block in blocks)


@pytest.mark.parametrize("how", ["torch.compile", "compile()"])
def test_a_transformer_that_the_user_compiled(larger_pipe, how):
    """One full graph, which what counts the steps is no part of."""
    transformer = larger_pipe.transformer
    with Pipeline(pipe=larger_pipe) as pipeline:
        plain = pipeline(**LARGER_CALL)
    torch._dynamo.reset()
    counters.clear()
    if how == "compile()":
        transformer.compile(backend="eager", fullgraph=True)
    else:
        larger_pipe.transformer = torch.compile(transformer, backend="eager", fullgraph=True)
    mine, compiled = larger_pipe.transformer, transformer._compiled_call_impl
    with Pipeline(pipe=larger_pipe) as pipeline:
        out = pipeline(**LARGER_CALL)
        graphs = counters["stats"]["unique_graphs"]
        sparser = pipeline(**LARGER_CALL, sparsity=0.8)
        assert counters["stats"]["unique_graphs"] == graphs <= 2
    torch.testing.assert_close(out.frames, plain.frames, atol=1e-4, rtol=0)
    assert [s.density for s in out.steps] == pytest.approx([s.density for s in plain.steps])
    assert [(s.routed, s.dense) for s in sparser.steps] == [(2, 0), (2, 0)]
    assert larger_pipe.transformer is mine and transformer._compiled_call_impl is compiled


def test_compiled_by_the_user_stays_so(pipe):
    blocks = pipe.transformer.transformer_blocks
    blocks[0].compile(backend="eager")
    mine = blocks[0]._compiled_call_impl
    with Pipeline(pipe=pipe, compile=True):
        assert blocks[0]._compiled_call_impl is mine and blocks[1]._compiled_call_impl
    assert blocks[0]._compiled_call_impl is mine and blocks[1]._compiled_call_impl is None


@pytest.mark.parametrize("name", model_names())
def test_shape_of_the_token_grid(name):
    """Also of what stands for the transformer in a pipeline, which has the configuration alone."""
    model = get_model(name)
    config = model.config("tiny")
    inputs = model.drawn_inputs(config, model.tiny_size, batch=1, dtype=torch.float32)
    alone = SimpleNamespace(config=FrozenDict(complete_config(model, config)))
    grid = model.grid_shape(alone, model.forward_kwargs(inputs))
    extents = model.extents(config, model.tiny_size, 1)
    assert grid == tuple(extents[f"grid_{axis}"] for axis in ("frames", "height", "width"))
    assert model.head_size(alone.config) in (64, 96, 128)


@pytest.mark.parametrize(
    ("frames", "settings"), [(5, {}), (1, {}), (9, {"sink_frames": 3}), (9, {"sink_frames": 2})]
)
def test_a_clip_that_cannot_be_sparse(pipe, frames, settings, caplog):
    call = {**CALL, "num_frames": frames}
    with (
        Pipeline(pipe=pipe, sparsity=0.7, **settings) as pipeline,
        pytest.raises(DenseAttentionError, match=r"0\.7 has no effect.*latent frames.*allow_dense"),
    ):
        pipeline(**call)
    with Pipeline(pipe=pipe, sparsity=0.0, **settings) as pipeline:
        dense = pipeline(**call)
    with Pipeline(pipe=pipe, sparsity=0.7, allow_dense=True, **settings) as pipeline:
        out = pipeline(**call, profile=True)
    assert out.sparsity == (0.0, 0.0)
    assert [row.sparsity for row in out.timings] == [0.0, 0.0]
    assert "allow_dense=True permits it" in caplog.text
    torch.testing.assert_close(out.frames, dense.frames)


@pytest.mark.parametrize("graph", [False, True], ids=["torch", "graph"])
@pytest.mark.parametrize(
    ("method", "what"),
    [("piecewise", "one window"), ("rainfusion2", "every two blocks")],
    ids=["window", "block"],
)
def test_a_clip_of_one_window_or_block(pipe, method, what, graph, caplog):
    """48 tokens beside the sinks; a window of piecewise holds 128 at this head size."""

    def made(**options):
        pipeline = Pipeline(pipe=pipe, method=method, sparsity=0.7, **options)
        if graph:  # as an engine is: sparse, and told of its sparsity by nobody but its input
            put_stand_in(pipeline)
        return pipeline

    transformer = pipe.transformer
    words = rf"0\.7 has no effect: .*{what} of method '{method}'.*allow_dense"
    with made() as pipeline:
        with pytest.raises(DenseAttentionError, match=words):
            pipeline(**CALL)
        assert pipeline(**CALL, sparsity=0.0).sparsity == (0.0, 0.0)
    pipe.transformer = transformer
    with made(allow_dense=True) as pipeline:
        out = pipeline(**CALL, profile=True)
    assert out.sparsity == (0.0, 0.0) and [row.density for row in out.timings] == [1.0, 1.0]
    assert what in caplog.text and "allow_dense=True permits it" in caplog.text


class EngineStandIn(GraphDenoiser):
    """What an engine looks like to a `Pipeline`, computed by the PyTorch transformer."""

    def __init__(self, transformer):
        self.transformer, self.name, self.device = transformer, "tensorrt", torch.device("cpu")
        self.inputs = {"x": TensorInfo("x", torch.float32, (), ())}
        self.outputs = {"sample": TensorInfo("sample", torch.float32, (), ())}
        self.profiles = (self.inputs,)
        super().__init__(self, get_model("cogvideox"), transformer.config)
        self.asked = []
        self.component.forward = self.forward

    def forward(self, **call):
        self.asked.append(float(self.component.sparsity))
        return self.transformer(**call)

    def close(self):
        pass


def put_stand_in(pipeline: rainfusion_trt.Pipeline) -> None:
    pipeline.denoiser.close()
    pipeline.denoiser = EngineStandIn(pipeline.pipe.transformer)
    pipeline._caller = dataclasses.replace(pipeline._caller, denoiser=pipeline.denoiser)
    pipeline.pipe.transformer = pipeline.denoiser.component


def test_an_engine_of_a_larger_clip_is_sparse(larger_pipe):
    """The stand-in is refused for its clip, and not for what it is."""
    with Pipeline(pipe=larger_pipe, method="piecewise", sparsity=0.7) as pipeline:
        put_stand_in(pipeline)
        out = pipeline(**{**LARGER_CALL, "num_frames": 37})
    assert out.sparsity == (0.0, 0.7) and pipeline.denoiser.asked == pytest.approx([0.0, 0.7])


def test_a_forward_of_its_own_stays_sparse(pipe):
    """As offloading hooks do that are removed and renewed: the module's own forward is back."""
    transformer = pipe.transformer
    with Pipeline(pipe=pipe, dense_fraction=0.0) as pipeline:
        assert pipeline(**CALL).sparsity == (0.5, 0.5)
        transformer.forward = MethodType(type(transformer).forward, transformer)
        step = pipeline(**CALL).steps[1]
        assert without_density(step) == StepReport(1, 0.5, routed=2, dense=0)


def test_routing_that_somebody_turned_off(pipe):
    with Pipeline(pipe=pipe, dense_fraction=0.0) as pipeline:
        disable(pipe.transformer)
        with pytest.raises(DenseAttentionError, match="2 of 2 self-attentions did not run"):
            pipeline(**CALL)
        assert pipeline(**CALL, sparsity=0.0).steps[1] == StepReport(1, 0.0, 0, 2, density=1.0)
    with Pipeline(pipe=pipe, dense_fraction=0.0, allow_dense=True) as pipeline:
        disable(pipe.transformer)
        out = pipeline(**CALL)
    assert out.sparsity == (0.0, 0.0)


def test_one_block_without_the_operator(pipe, caplog, densities):
    class Averaging:
        """An attention processor that never calls F.scaled_dot_product_attention."""

        def __call__(self, attn, hidden_states, encoder_hidden_states, **_):
            return torch.zeros_like(hidden_states), torch.zeros_like(encoder_hidden_states)

    pipe.transformer.transformer_blocks[1].attn1.processor = Averaging()
    with pytest.raises(DenseAttentionError, match=r"transformer_blocks.1.attn1 .* Averaging"):
        Pipeline(pipe=pipe)
    with Pipeline(pipe=pipe, allow_dense=True) as pipeline:
        out = pipeline(**CALL)
    assert without_density(out.steps[1]) == StepReport(1, 0.5, routed=1, dense=1)
    assert out.steps[1].density == pytest.approx((densities[1] + 1) / 2, abs=1e-6)
    assert "1 of 2 self-attentions" in caplog.text


# -- state -----------------------------------------------------------------------------------------


def test_closed(pipe):
    transformer = pipe.transformer
    pipeline = Pipeline(pipe=pipe)
    pipeline.close()
    pipeline.close()
    assert pipe.transformer is transformer
    with pytest.raises(InvalidInputError, match="closed: make a new one"):
        pipeline(**CALL)
    with Pipeline(pipe=pipe) as again:
        assert again(**CALL).sparsity == (0.0, 0.5)


def test_close_after_the_user_has_disabled(pipe):
    with Pipeline(pipe=pipe) as pipeline:
        rainfusion_trt.disable(pipe.transformer)
        with pytest.raises(DenseAttentionError):
            pipeline(**CALL)


class Turns:
    """A callback that stops one generation in its first step until it may go on."""

    def __init__(self) -> None:
        self.running, self.go_on = threading.Event(), threading.Event()

    def __call__(self, pipe, step, timestep, tensors):
        self.running.set()
        assert self.go_on.wait(60)
        return tensors


def in_thread(function, results):
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread


def test_a_second_thread_is_an_error(pipeline):
    turns, results = Turns(), []
    alone = pipeline(**CALL).frames
    thread = in_thread(lambda: pipeline(**CALL, callback_on_step_end=turns), results)
    try:
        assert turns.running.wait(60)
        with pytest.raises(InvalidInputError, match="in another thread.*wait=True"):
            pipeline(**{**CALL, "seed": 1})
    finally:
        turns.go_on.set()
        thread.join()
    torch.testing.assert_close(results[0].frames, alone, atol=0, rtol=0)


def test_wait_queues(pipe):
    turns, results = Turns(), []
    with Pipeline(pipe=pipe, wait=True) as pipeline:
        alone = [pipeline(**{**CALL, "seed": seed}).frames for seed in range(3)]
        threads = [in_thread(lambda: pipeline(**CALL, callback_on_step_end=turns), results)]
        assert turns.running.wait(60)
        threads += [
            in_thread(lambda seed=seed: pipeline(**{**CALL, "seed": seed}), results)
            for seed in (1, 2)
        ]
        assert not results
        turns.go_on.set()
        for thread in threads:
            thread.join()
    assert torch.equal(results[0].frames, alone[0])
    for out in results[1:]:
        assert any(torch.equal(out.frames, frames) for frames in alone[1:])


def test_a_callback_cannot_call_its_own_pipeline(pipe):
    with Pipeline(pipe=pipe, wait=True) as pipeline:
        for action in (lambda: pipeline(**CALL), pipeline.close):
            with pytest.raises(InvalidInputError, match="its own callback"):
                pipeline(**CALL, callback_on_step_end=lambda *_, act=action: act())
        assert pipeline(**CALL).sparsity == (0.0, 0.5)  # nothing is left locked


# -- numbers ---------------------------------------------------------------------------------------


def test_latents_that_are_not_finite(pipeline):
    latents = torch.full((1, 3, 16, 8, 12), float("nan"))
    pipeline.pipe.vae.decode = None  # stops before
    with pytest.raises(NotFiniteError, match="after the last step the latents"):
        pipeline(**{**CALL, "output_type": "np"}, latents=latents)


def test_embeddings_that_are_not_finite(pipeline):
    embeddings = torch.full((1, 16, 32), float("inf"))
    with pytest.raises(NotFiniteError, match="NaN"):
        pipeline(**{**CALL, "prompt": None}, prompt_embeds=embeddings, guidance_scale=1.0)


@pytest.mark.parametrize("form", ["np", "pt", "pil", None])
def test_frames_that_are_not_finite(pipeline, form):
    decode = pipeline.pipe.vae.decode
    pipeline.pipe.vae.decode = lambda latents: type(decode(latents))(
        sample=decode(latents).sample * float("nan")
    )
    with pytest.raises(NotFiniteError, match="the frames are not finite"):
        pipeline(**{**CALL, "output_type": form})


def test_images_are_those_of_diffusers(pipe):
    call = {name: value for name, value in CALL.items() if name not in ("seed", "output_type")}
    generator = torch.Generator().manual_seed(0)
    wanted = pipe(**call, generator=generator, max_sequence_length=16).frames
    with Pipeline(pipe=pipe, sparsity=0.0) as pipeline:
        frames = pipeline(**call, seed=0).frames
    assert len(frames) == 1 and len(frames[0]) == 9
    for image, other in zip(frames[0], wanted[0], strict=True):
        assert type(image) is type(other)
        assert np.abs(np.asarray(image, int) - np.asarray(other, int)).max() <= 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "6"}, "guidance_scale='6': give a number"),
        ({"height": 0}, "height is 0: give an integer from 1 on"),
        ({"num_frames": 0}, "num_frames is 0"),
        ({"width": 96.0}, "width=96.0: give an integer"),
        ({"height": 60}, "height=60 must be a multiple of 16 for cogvideox"),
        ({"schedule": []}, "no values"),
        ({"schedule": iter([0.5])}, "1 values for 2 steps"),
    ],
)
def test_refused_before_work_starts(pipeline, call, words):
    pipeline.pipe.encode_prompt = None  # would fail otherwise
    with pytest.raises(InvalidInputError, match=words):
        pipeline(**{**CALL, **call})


def test_schedules_of_the_constructor(pipe, caplog):
    with Pipeline(pipe=pipe, schedule=iter([0.0, 0.25])) as pipeline:
        assert pipeline(**CALL).sparsity == (0.0, 0.25)
        with caplog.at_level(logging.INFO, "rainfusion_trt"):
            assert pipeline(**CALL).sparsity == (0.0, 0.25)
        assert pipeline(**CALL, schedule=np.array([0.25, 0.5])).sparsity == (0.25, 0.5)
    with pytest.raises(InvalidInputError, match="no values"):
        Pipeline(pipe=pipe, schedule=[])
