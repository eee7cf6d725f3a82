"""A picture in, a video out: a tiny Wan TI2V-5B whose checkpoint is of text to video."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import WanImageToVideoPipeline
from PIL import Image
from typer.testing import CliRunner

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.errors import BackendUnavailableError, GenerationCancelled, InvalidInputError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.runtime import pipes

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu")  # also beside a GPU
MODEL = get_model("wan2.2-ti2v-5b")
SIZE = VideoSize(25, 256, 256)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show
PICTURE = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
# Instead of a prompt, which Wan's image pipelines clean by ftfy.
TEXT = torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(0))
CALL = {
    "prompt_embeds": TEXT,
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 2,
    "guidance_scale": 1.0,
    "output_type": "latent",
    "seed": 0,
}


@pytest.fixture(autouse=True)
def classes(monkeypatch):
    monkeypatch.setattr(MODEL, "other_pipelines", ("WanImageToVideoPipeline",))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32)
    tiny_pipeline(transformer, expand_timesteps=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint) -> Path:
    from rainfusion_trt.export import export_model

    transformer = MODEL.load(str(checkpoint), dtype=torch.float32)
    return export_model(MODEL, transformer, SIZE, output=checkpoint.parent / "x.onnx").path


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(PICTURE).save(path)
    return path


@pytest.fixture
def pipeline(checkpoint):
    # Of clips as small as these piecewise would keep every window.
    with Pipeline(
        MODEL.name,
        checkpoint=checkpoint,
        backend="torch",
        dtype=torch.float32,
        method="rainfusion",
    ) as pipeline:
        yield pipeline


def test_an_image_of_every_form_is_diffusers_own(pipeline, checkpoint, picture):
    """Dense, it equals diffusers' pipeline; sparse, it does not; and text alone still works."""
    plain = WanImageToVideoPipeline.from_pretrained(checkpoint)
    call = {name: value for name, value in CALL.items() if name != "seed"}
    generator = torch.Generator().manual_seed(0)
    wanted = plain(**call, image=Image.fromarray(PICTURE), generator=generator).frames
    tensor = torch.from_numpy(PICTURE).permute(2, 0, 1) / 255
    for image in (str(picture), PICTURE, tensor):
        dense = pipeline(**CALL, image=image, sparsity=0.0)
        # Unit scale, float32; two steps.
        torch.testing.assert_close(dense.frames, wanted, atol=1e-4, rtol=0)
    sparse = pipeline(**CALL, image=picture, schedule=[0.8, 0.8])
    assert sparse.sparsity == (0.8, 0.8) and sparse.steps[1].density < 0.9
    assert (sparse.frames - wanted).abs().max() > 1e-2
    text = pipeline(**CALL, sparsity=0.0).frames
    assert (text - wanted).abs().max() > 1e-1


def test_onnx_runtime_equals_pytorch(pipeline, checkpoint, exported, picture):
    wanted = pipeline(**CALL, image=picture, sparsity=0.0).frames
    size = ("num_frames", "height", "width")  # those of the file, by default
    call = {name: value for name, value in CALL.items() if name not in size}
    arguments = {"checkpoint": checkpoint, "onnx": exported, "dtype": torch.float32}
    with Pipeline(**arguments, sparsity=0.0) as other:
        assert other.backend == "onnxruntime"
        frames = other(**call, image=picture).frames
        with pytest.raises(InvalidInputError, match="exported for 25x256x256 only"):
            other(**call, image=picture, height=128)
        with pytest.raises(BackendUnavailableError, match="dense body"):
            other(**call, image=picture, sparsity=0.5)
    # Relative 1e-5 of two float32 implementations, at unit scale.
    torch.testing.assert_close(frames, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"image": "/no.png"}, "image /no.png does not exist"),
        ({"image": np.full((8, 8, 3), np.nan)}, "image holds values that are not finite"),
        ({"last_image": PICTURE}, "ImageToVideoPipeline starts from image|leaves last_image out"),
        ({"image": PICTURE, "last_image": PICTURE}, "with expand_timesteps leaves last_image out"),
        ({"image": PICTURE, "video": [PICTURE]}, "wan2.2-ti2v-5b takes no image with video"),
    ],
)
def test_what_is_refused_before_work_starts(pipeline, call, words):
    pipeline.pipe.vae.encode = pipeline.pipe.transformer.forward = None  # would fail otherwise
    with pytest.raises(InvalidInputError, match=words) as error:
        pipeline(**CALL, **call)
    assert "\n" not in str(error.value)


def test_a_picture_of_another_shape_is_said(pipeline, caplog):
    call = {**CALL, "num_inference_steps": 1, "num_frames": 13}
    pipeline(**call, image=PICTURE[:250], sparsity=0.0)
    assert "stretch" not in caplog.text
    pipeline(**call, image=PICTURE[:128], sparsity=0.0)
    assert "image has 256x128 pixels (width x height) and the clip 256x256" in caplog.text


def test_a_package_that_a_pipeline_needs(pipeline, monkeypatch):
    monkeypatch.setattr("diffusers.utils.is_ftfy_available", lambda: False)
    call = {name: value for name, value in CALL.items() if name != "prompt_embeds"}
    with pytest.raises(BackendUnavailableError, match="WanImageToVideoPipeline needs ftfy: pip"):
        pipeline("a fox", **call, image=PICTURE)
    pipes.check_packages(pipeline.pipe)  # which asks whether it is there


# -- a caller that looks on, and ends a call -------------------------------------------------------


def test_progress_and_cancel_between_steps(pipeline):
    call = {**CALL, "image": PICTURE, "num_inference_steps": 4, "num_frames": 13}
    wanted = pipeline(**call).frames
    seen, flag = [], threading.Event()

    def progress(done: int, steps: int) -> None:
        seen.append((done, steps))
        if done == 2:
            flag.set()

    pipeline.pipe.vae.decode = None  # nothing is decoded of what was ended
    with pytest.raises(GenerationCancelled, match="cancelled after 2 steps"):
        pipeline(**{**call, "output_type": "np"}, progress=progress, cancel=flag)
    assert seen == [(0, 4), (1, 4), (2, 4)]
    with pytest.raises(GenerationCancelled, match="after 0 steps"):
        pipeline(**call, cancel=flag, progress=progress)
    assert len(seen) == 3
    flag.clear()
    torch.testing.assert_close(pipeline(**call, cancel=flag).frames, wanted, atol=0, rtol=0)


def test_progress_may_raise(pipeline):
    def stop(done: int, steps: int) -> None:
        raise GenerationCancelled("the client has gone")

    freed = []
    pipeline._caller.pipes.for_call(["image"]).maybe_free_model_hooks = lambda: freed.append(1)
    with pytest.raises(GenerationCancelled, match="client has gone"):
        pipeline(**CALL, image=PICTURE, progress=stop)
    assert freed == [1]


# -- the whole way ---------------------------------------------------------------------------------


def frames_of(path: Path) -> np.ndarray:
    from rainfusion_trt.video import load_video

    return np.stack(load_video(path))


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_picture_becomes_an_mp4(checkpoint, exported, picture, tmp_path, backend):
    pytest.importorskip("ftfy")
    files = ("--onnx", str(exported)) if backend == "onnxruntime" else ("--model", MODEL.name)
    common = ("run", "--prompt", "a fox", "--checkpoint", str(checkpoint), "--steps", "2")
    common += ("--frames", "25", "--height", "256", "--width", "256", "--device", "cpu", *files)
    made = {}
    for name, more in {
        "dense": ("--image", str(picture), "--sparsity", "0"),
        "sparse": ("--image", str(picture), "--dense-fraction", "0", "--profile"),
    }.items():
        if backend == "onnxruntime" and name != "dense":
            continue  # it has no other
        path = tmp_path / f"{name}.mp4"
        result = CliRunner().invoke(app, [*common, "--output", str(path), *more])
        assert result.exit_code == 0, result.output
        made[name] = frames_of(path)
        assert made[name].shape == (25, 256, 256, 3)
        if name == "sparse":
            assert "density" in result.stderr
    assert backend == "onnxruntime" or not np.array_equal(made["sparse"], made["dense"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--image", "no.png"), "image no.png does not exist"),
        (("--image", "."), "image . is a folder"),
        (("--last-image", "no.png"), "last_image no.png does not exist"),
        (("--video", "no.mp4"), "video no.mp4 does not exist"),
        (("--strength", "1.5"), "strength is 1.5"),
        (("--strength", "0.5", "--model", MODEL.name), "takes no strength"),
    ],
)
def test_a_start_is_checked_before_anything_is_loaded(checkpoint, tmp_path, options, words):
    arguments = ("--prompt", "x", "--checkpoint", str(checkpoint))
    target = ("--output", str(tmp_path / "x.mp4"))
    result = CliRunner().invoke(app, ["run", *arguments, *target, *options])
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line


def test_a_model_that_takes_no_picture_is_not_loaded(checkpoint, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(MODEL, "other_pipelines", ())
    monkeypatch.setattr(MODEL, "load", None)
    arguments = ("--prompt", "x", "--checkpoint", str(checkpoint), "--model", MODEL.name)
    target = ("--output", str(tmp_path / "x.mp4"), "--image", str(picture))
    result = CliRunner().invoke(app, ["run", *arguments, *target])
    assert result.exit_code == 2
    assert "wan2.2-ti2v-5b takes no image: no pipeline of it does (WanPipeline)" in result.stderr
