"""Steps of the demo that need neither plugin nor engine."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.demo import steps
from rainfusion_trt.demo.__main__ import _write, frame_psnr, main
from rainfusion_trt.demo.captions import STRIP, captioned
from rainfusion_trt.demo.trained import TRAINED_SIZE, load_trained
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.routing import RainFusionSettings

SIZE = VideoSize(9, 128, 192)
MODEL = get_model("cogvideox")
# Named, since piecewise needs all windows of a clip this small.
SHOT = steps.Shot("a red panda", SIZE, 2, 0, settings=RainFusionSettings("rainfusion"))


@pytest.fixture
def pipe():
    return tiny_pipeline(MODEL, size=SIZE)


def test_exported_once_and_run(pipe, tmp_path, caplog):
    path = tmp_path / "demo.onnx"
    with caplog.at_level(logging.INFO, "rainfusion_trt.demo"):
        steps.export_once(MODEL, pipe, path, torch.float32, SHOT)
        written = path.stat().st_mtime_ns
        steps.export_once(MODEL, pipe, path, torch.float32, SHOT)
    assert path.stat().st_mtime_ns == written
    assert "up to date" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "rainfusion_trt.demo"):
        dense, sparse = steps.run_pair(*steps.on_cpu(pipe, path, SHOT), SHOT)
    assert "dense: ran on onnxruntime" in caplog.text
    assert "rainfusion: ran on torch" in caplog.text
    assert dense.shape == sparse.shape == (9, 128, 192, 3)
    assert np.abs(dense - sparse).max() > 1e-4


def test_other_weights_and_settings_are_exported_again(pipe, tmp_path):
    path = tmp_path / "demo.onnx"
    steps.export_once(MODEL, pipe, path, torch.float16, SHOT)
    first = path.read_bytes()
    with torch.no_grad():
        pipe.transformer.proj_out.bias.add_(1.0)
    steps.export_once(MODEL, pipe, path, torch.float16, SHOT)
    second = path.read_bytes()
    other = dataclasses.replace(SHOT, settings=RainFusionSettings("rainfusion2"))
    steps.export_once(MODEL, pipe, path, torch.float16, other)
    assert len({first, second, path.read_bytes()}) == 3


@pytest.mark.parametrize(
    ("module", "decides"),
    [
        ("routing/route.py", True),  # which attentions are captured
        ("operator/settings.py", True),  # the attributes of their nodes
        ("operator/ops.py", True),
        ("models/cogvideox.py", True),
        ("export/finish.py", True),
        ("demo/steps.py", False),
        ("runtime/pipeline.py", False),
        ("engine/build.py", False),
    ],
)
def test_code_that_decides_what_is_exported_is_hashed(tmp_path, module, decides):
    package = tmp_path / "rainfusion_trt"
    shutil.copytree(
        Path(steps.__file__).parents[1],
        package,
        ignore=lambda _, names: [n for n in names if "." in n and not n.endswith(".py")],
    )
    before = steps._sources(package)
    assert before == steps._sources()
    with (package / module).open("a") as file:
        file.write("# changed\n")
    assert (steps._sources(package) != before) is decides


def test_fingerprint_is_the_same_in_another_process(pipe):
    code = (
        "from helpers.cogvideox_pipeline import tiny_pipeline; "
        "from rainfusion_trt.demo import steps; "
        "from rainfusion_trt.models import VideoSize, get_model; "
        "pipe = tiny_pipeline(get_model('cogvideox'), size=VideoSize(9, 128, 192)); "
        "print(steps._fingerprint(pipe.transformer))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split()[-1] == steps._fingerprint(pipe.transformer)


def test_trained_pipeline_is_the_registrys_cogvideox():
    pipe = load_trained(torch.float16)
    assert model_of(pipe.transformer) is MODEL
    assert pipe.transformer.dtype is torch.float16 and pipe.vae.dtype is torch.float32
    latents = torch.zeros(1, 13, 16, 32, 40, dtype=torch.float16)  # as the pipeline hands them
    pixels = pipe.decode_latents(latents)
    expected = (1, 3, TRAINED_SIZE.frames, TRAINED_SIZE.height, TRAINED_SIZE.width)
    assert pixels.shape == expected


def test_caption_stands_above_an_untouched_picture():
    clip = np.random.default_rng(0).integers(0, 256, (3, 32, 160, 3), dtype=np.uint8)
    result = captioned(clip, "dense")
    assert result.shape == (3, 32 + STRIP, 160, 3)
    assert np.array_equal(result[:, STRIP:], clip)
    strip = result[:, :STRIP]
    assert strip[:, :, 60:].max() == 0 and strip[:, :, :60].max() > 200
    assert np.array_equal(strip[0], strip[2])
    assert not np.array_equal(strip, captioned(clip, "sparse")[:, :STRIP])


def test_psnr_of_known_differences():
    clip = np.full((2, 4, 4, 3), 0.5, dtype=np.float32)
    assert frame_psnr(clip, clip) == math.inf
    assert frame_psnr(clip, clip + 0.1) == pytest.approx(20.0, abs=1e-3)


def test_both_halves_are_written(tmp_path, caplog):
    rng = np.random.default_rng(0)
    clips = [rng.random((9, 32, 64, 3), dtype=np.float32) for _ in range(2)]
    with caplog.at_level(logging.INFO, "rainfusion_trt.demo"):
        _write(*clips, tmp_path, SHOT, fps=8)
    assert "PSNR 7." in caplog.text  # two uniform noises: 10 log10(6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo.jpg", "demo.mp4"]


@pytest.mark.parametrize(
    ("option", "word"), [(("--method", "rainfusion3"), "rainfusion3"), (("--sparsity", "1"), "1")]
)
def test_bad_options_end_before_any_work(tmp_path, option, word):
    import typer

    app = typer.Typer()
    app.command()(main)
    result = CliRunner().invoke(app, ["--output", str(tmp_path), *option])
    assert result.exit_code == 2
    assert word in result.output
    assert not list(tmp_path.iterdir())
