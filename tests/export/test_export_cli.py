"""The exporter's command line."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rainfusion_trt.export.cli import app

SCRIPT = Path(__file__).parents[2] / "export" / "to_onnx.py"
MODULE = "helpers.plain_dit"
OWN = ["--module", f"{MODULE}:make", "--grid", "3,4,6", "--text", "last", "--text-tokens", "7"]
TINY = ["--config", "tiny", "--layers", "1", "--random-weights"]


def call(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


def test_exports_and_says_what_it_wrote(tmp_path):
    """A script of a checkout runs from another folder, with nothing on PYTHONPATH."""
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
        (TINY, "give one of --model NAME"),
        (["--model", "cogvideox", "--module", "a:b", *TINY], "give one of --model NAME"),
        (
            ["--model", "cogvideox", *TINY, "--grid", "3,4,6", "--text", "last"],
            "--grid, --text can",
        ),
        ([*OWN, "--layers", "1", "--dtype", "bf16"], "--dtype, --layers cannot go with --module"),
        (["--module", MODULE, "--grid", "3,4,6"], "must be package.module:factory"),
        (["--module", "no_such:make", "--grid", "3,4,6"], "no module 'no_such' here"),
        (["--module", f"{MODULE}:no_such", "--grid", "3,4,6"], "no function 'no_such'"),
        (["--module", f"{MODULE}:make_nothing", "--grid", "3,4,6"], "gives int, expected a pair"),
        (["--module", f"{MODULE}:make"], "--module needs --grid T,H,W"),
        (["--module", f"{MODULE}:make", "--grid", "3x4x6"], "'3x4x6'"),
        ([*OWN, "--attentions", "3"], "2 attentions of PlainDiT"),
        ([*OWN, "--text-tokens", "8"], "79 x 79 (2 times), 79 x 7 (2 times)"),
    ],
)
def test_bad_arguments_end_in_one_clear_error(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = call(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith("error: ") and message in result.output
    assert not list(tmp_path.iterdir())


def test_exports_a_module_of_ones_own_from_the_working_directory(tmp_path):
    shutil.copy(Path(__file__).parents[1] / "helpers" / "plain_dit.py", tmp_path / "my_project.py")
    arguments = [argument.replace(MODULE, "my_project") for argument in OWN]
    result = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments, "--compare"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PATH": "", "HOME": "/tmp"},
    )
    assert result.returncode == 0, result.stderr
    assert "make.onnx" in result.stdout and "2 RainFusionAttention" in result.stdout
    assert "ONNX Runtime differs by" in result.stdout
    assert (tmp_path / "make.onnx").is_file()


def test_what_the_factory_raises_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "broken_module.py").write_text("import a_package_that_is_missing\n")
    (tmp_path / "broken_factory.py").write_text("def make():\n    raise KeyError('weights')\n")
    monkeypatch.chdir(tmp_path)
    for name, words in (
        ("broken_module", "No module named 'a_package_that_is_missing'"),
        ("broken_factory", "KeyError: 'weights'"),
    ):
        result = call("--module", f"{name}:make", "--grid", "3,4,6")
        assert result.exit_code == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ") and words in line
        assert f"{name}.py:" in line  # the place, which is not ours
        assert str(tmp_path) not in sys.path
