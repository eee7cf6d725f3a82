"""A picture in, a video out by a real engine of a tiny Wan TI2V-5B, against the PyTorch backend.

Both round every activation to float16 (2^-11), in other places; two layers and guidance, which
multiplies what its two calls differ in by 5, leave errors near 1e-2 after two steps.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rainfusion_trt import Pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.engine import EngineRecipe, build_engine
from rainfusion_trt.errors import DenseAttentionError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.video import load_video

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, pytest.mark.xdist_group(__name__)]
pytest.importorskip("ftfy")

MODEL = get_model("wan2.2-ti2v-5b")
SIZE = VideoSize(33, 256, 384)  # 9 x 8 x 12 tokens: enough windows to leave some out
PICTURE = np.random.default_rng(0).integers(0, 256, (256, 384, 3), dtype=np.uint8)
CALL = {"prompt": "a fox", "image": PICTURE, "num_inference_steps": 2, "output_type": "latent"}
CLIP = {"num_frames": SIZE.frames, "height": SIZE.height, "width": SIZE.width}
TOLERANCE = 2e-2


@pytest.fixture(autouse=True)
def classes(monkeypatch):
    monkeypatch.setattr(MODEL, "other_pipelines", ("WanImageToVideoPipeline",))


def tiny_transformer() -> torch.nn.Module:
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float16, seed=0)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from helpers.wan_pipeline import tiny_pipeline

    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline(tiny_transformer(), expand_timesteps=True).save_pretrained(folder)
    return folder


def built(folder, library, size: VideoSize, **settings):
    from rainfusion_trt.export import export_model
    from rainfusion_trt.operator.settings import AttentionSettings

    path = folder / "tiny.onnx"
    chosen = AttentionSettings(**settings)
    export_model(MODEL, tiny_transformer(), size, output=path, settings=chosen)
    recipe = EngineRecipe(model=MODEL.name, precision="float16")
    return build_engine(path, recipe=recipe, plugin=library)


@pytest.fixture(scope="module")
def engine(tmp_path_factory, plugin_library):
    return built(tmp_path_factory.mktemp("engine"), plugin_library, SIZE)


@pytest.mark.parametrize("schedule", [[0.0, 0.0], [0.0, 0.5]], ids=["dense", "sparse"])
def test_engine_equals_torch_backend(checkpoint, engine, schedule):
    """The size is the engine's, by default; the image pipeline is made of the text one's parts."""
    call = {**CALL, "seed": 0, "schedule": schedule}
    arguments = {"checkpoint": checkpoint, "dtype": torch.float16}
    with Pipeline(MODEL.name, backend="torch", **arguments) as pipeline:
        wanted = pipeline(**call, **CLIP).frames.float()
    with Pipeline(engine=engine, **arguments) as pipeline:
        out = pipeline(**call, profile=True)
    assert out.backend in ("tensorrt", "tensorrt_rtx") and out.sparsity == tuple(schedule)
    assert ((out.frames.float() - wanted).norm() / wanted.norm()).item() < TOLERANCE
    assert [row.density for row in out.timings] == [1.0, None if schedule[1] else 1.0]


def test_a_picture_becomes_an_mp4(checkpoint, engine, tmp_path):
    pytest.importorskip("av")
    from PIL import Image

    picture, video = tmp_path / "picture.png", tmp_path / "clip.mp4"
    Image.fromarray(PICTURE).save(picture)
    files = ("--checkpoint", str(checkpoint), "--engine", str(engine), "--output", str(video))
    options = ("--prompt", "a fox", "--image", str(picture), "--steps", "2")
    result = CliRunner().invoke(app, ["run", *files, *options])
    assert result.exit_code == 0, result.output
    assert np.stack(load_video(video)).shape == (SIZE.frames, SIZE.height, SIZE.width, 3)


def test_a_clip_of_one_window_is_no_sparse_one(checkpoint, tmp_path, plugin_library):
    """2 x 4 x 4 tokens beside the sinks; a window of piecewise holds more."""
    small = VideoSize(9, 128, 128)
    folder = built(tmp_path, plugin_library, small, method="piecewise")
    with Pipeline(engine=folder, checkpoint=checkpoint, dtype=torch.float16) as pipeline:
        with pytest.raises(DenseAttentionError, match="one window of method 'piecewise'"):
            pipeline(**CALL, seed=0)
        assert pipeline(**CALL, seed=0, sparsity=0.0).sparsity == (0.0, 0.0)
