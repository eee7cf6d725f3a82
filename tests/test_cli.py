"""The command line: help, errors, and one run on a tiny model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt import environment
from rainfusion_trt.cli import app
from rainfusion_trt.models import VideoSize, get_model

COMMANDS = ("build-plugin", "build-engine", "run", "info")


def invoke(*arguments: str):
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, list(arguments))


def test_help_names_every_command():
    result = invoke("--help")
    assert result.exit_code == 0
    assert all(command in result.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_commands(command):
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from rainfusion_trt.cli import app; "
        "CliRunner().invoke(app, ['--help']); "
        "print([m for m in ('torch', 'diffusers', 'onnx', 'tensorrt') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build-engine", "no.onnx", "--profile", "no.yaml"), "no.yaml"),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--output", "out/x.gif"),
            "out/x.gif has to end in .mp4",
        ),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--engine", "no"),
            "no is not an engine folder",
        ),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--model", "sora"),
            "model 'sora' is unknown",
        ),
    ],
)
def test_errors_are_one_line_and_status_2(arguments, words):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert result.stdout == ""


def test_info_names_what_is_found_and_what_is_missing():
    result = invoke("info")
    assert result.exit_code == 0
    for part in ("Python", "torch", "GPU", "onnxruntime", "tensorrt_rtx", "plugin library"):
        assert part in result.stdout


def test_info_prints_remedies_word_for_word(monkeypatch):
    remedy = "pip install 'rainfusion-trt[rtx]'"
    monkeypatch.setattr(environment, "survey", lambda: [environment.Finding("part", "", remedy)])
    assert remedy in invoke("info").stdout


def test_profile_that_is_neither_file_nor_name(tmp_path):
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"")
    result = invoke("build-engine", str(onnx), "--profile", "cogvideox-6b")
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "cogvideox-6b" in result.stderr and "cogvideox-5b" in result.stderr


def test_run_writes_an_mp4(tmp_path: Path):
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "new" / "clip.mp4"
    tiny_pipeline(get_model("cogvideox"), size=VideoSize(9, 64, 96)).save_pretrained(checkpoint)
    size = ("--frames", "9", "--height", "64", "--width", "96", "--steps", "2")
    arguments = ("--prompt", "a fox", "--model", "cogvideox", "--backend", "torch")
    paths = ("--checkpoint", str(checkpoint), "--output", str(output))
    result = invoke(
        "run", *arguments, *size, *paths, "--profile", "--device", "cpu", "--vae-tiling"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(output)
    assert "transformer ms" in result.stderr
    assert output.stat().st_size > 1000
