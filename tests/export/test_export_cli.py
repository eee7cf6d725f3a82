"""The exporter's command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rainfusion_export.cli import app
from typer.testing import CliRunner

SCRIPT = Path(__file__).parents[2] / "export" / "to_onnx.py"
TINY = ["--config", "tiny", "--layers", "1", "--random-weights"]


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_exports_and_says_what_it_wrote(tmp_path):
    """As a script of a checkout, from another folder, without anything on PYTHONPATH."""
    command = [sys.executable, str(SCRIPT), "--model", "cogvideox-2b", *TINY]
    command += ["--dtype", "fp32", "--compare", "--output", "out/tiny.onnx"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": "", "HOME": "/tmp"}
    )
    assert result.returncode == 0, result.stderr
    assert "out/tiny.onnx" in result.stdout and "1 RainFusionAttention" in result.stdout
    assert "ONNX Runtime differs by" in result.stdout
    assert (tmp_path / "out" / "tiny.onnx").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "sora", *TINY], "known models: cogvideox-2b"),
        (["--model", "cogvideox"], "--checkpoint <directory"),
        (["--model", "cogvideox", "--checkpoint", "a/b", "--random-weights"], "give one only"),
        (["--model", "cogvideox", "--checkpoint", "/no/such", "--dtype", "fp16"], "/no/such"),
        (["--model", "cogvideox", "--checkpoint", ".", "--layers", "2"], "--random-weights"),
        (["--model", "cogvideox", *TINY, "--dtype", "int8"], "'int8'"),
        (["--model", "cogvideox", *TINY, "--method", "magic"], "'magic'"),
        (["--model", "cogvideox", *TINY, "--alpha", "2"], "alpha=2.0"),
        (["--model", "cogvideox", *TINY, "--sink-frames", "-1"], "sink_frames=-1"),
        (["--model", "cogvideox", *TINY, "--device", "tpu"], "'tpu'"),
        (["--model", "cogvideox", *TINY, "--height", "33"], "height=33"),
        (["--model", "cogvideox", *TINY, "--compare"], "float32"),
        (["--model", "cogvideox", "--no-weights", "--dtype", "fp32", "--compare"], "needs weights"),
        (["--model", "cogvideox", *TINY, "--layers", "7"], "layers=7"),
        (["--model", "cogvideox-2b", *TINY, "--dynamic"], "--fixed"),
    ],
)
def test_bad_arguments_end_in_one_clear_error(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and message in result.output
    assert not list(tmp_path.iterdir())
