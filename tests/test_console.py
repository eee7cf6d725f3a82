"""The border of the command line: whose errors are one line, and which are bugs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
import typer
import yaml
from pydantic import BaseModel
from typer.testing import CliRunner

from rainfusion_trt.cli import app
from rainfusion_trt.console import OneLineCommand, explain, one_line
from rainfusion_trt.errors import InvalidInputError

RUNNER = CliRunner(env={"COLUMNS": "200"})


def caught(function, *arguments, **options) -> Exception:
    try:
        function(*arguments, **options)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


class Size(BaseModel):
    width: int


def damaged_safetensors(path: Path):
    path.write_bytes(b"\xff" * 64)
    return safetensors.safe_open(path, "pt")


def onnx_without_operators(path: Path):
    node = onnx.helper.make_node("NoSuchOperator", ["x"], ["y"])
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], [out]))
    onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def no_such_checkpoint(path: Path):
    from diffusers import CogVideoXTransformer3DModel

    CogVideoXTransformer3DModel.from_pretrained(str(path))


def not_at_the_hub(path: Path):
    from huggingface_hub import snapshot_download

    snapshot_download("a name/with blanks", local_files_only=True)


def impossible_scheduler(path: Path):
    from diffusers import CogVideoXDPMScheduler

    CogVideoXDPMScheduler(beta_schedule="no such")


def adapter_without_configuration(path: Path):
    from peft import PeftConfig

    path.mkdir()
    PeftConfig.from_pretrained(str(path))


def weights_of_another_layer(path: Path):
    torch.nn.Linear(2, 2).load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(2)})


def damaged_pickle(path: Path):
    path.write_bytes(b"no weights")
    torch.load(path, weights_only=True)


def untraceable(path: Path):
    class Module(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    torch.export.export(Module(), (torch.ones(2),))


def full_disk(path: Path):
    """Written by another package, in whose frame the system refuses it."""
    tensor = onnx.numpy_helper.from_array(np.zeros(1 << 16, np.float32), "w")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    onnx.save(model, "/dev/full")


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (full_disk, "cannot be written: No space left on device (make room there"),
        (lambda path: torch.empty(1 << 55, dtype=torch.uint8), "out of memory (["),
        (lambda path: np.empty(1 << 55, np.uint8), "out of memory (Unable to allocate"),
        (damaged_safetensors, "a safetensors file cannot be read"),
        (lambda path: onnx.checker.check_model(onnx.ModelProto()), "an ONNX file cannot be read"),
        (lambda path: onnx.load_model_from_string(b"\xff" * 9), "an ONNX file cannot be read"),
        (onnx_without_operators, "ONNX Runtime refuses"),
        (
            lambda path: Size(width="wide"),
            "a value does not fit (width='wide' must be an integer): correct it",
        ),
        (lambda path: yaml.safe_load("a: [b"), "not valid YAML"),
        (lambda path: json.loads("{"), "has to be JSON is not"),
        (lambda path: b"\xff".decode(), "not UTF-8"),
        (lambda path: path.read_bytes(), "No such file or directory"),
        (not_at_the_hub, "check the name and the network"),
        (no_such_checkpoint, "check the"),
        (impossible_scheduler, "diffusers refuses it (no such is not implemented"),
        (adapter_without_configuration, "adapter_config.json"),
        (weights_of_another_layer, "size mismatch for weight"),
        (damaged_pickle, "download or write it again"),
        (untraceable, "torch cannot trace the module"),
        (lambda path: __import__("no_such_package"), "no_such_package is not installed"),
        (lambda path: (_ for _ in ()).throw(MemoryError()), "out of memory (on the host)"),
        (lambda path: (_ for _ in ()).throw(torch.OutOfMemoryError("4 GB")), "memory (4 GB)"),
    ],
)
def test_what_others_refuse_is_one_line(tmp_path, fail, words):
    error = caught(fail, tmp_path / "thing")
    line = explain(error)
    assert line is not None, repr(error)
    assert words in line and line.isprintable() and len(line) < 900


@pytest.mark.parametrize(
    "fail",
    [
        lambda: {}["missing"],
        lambda: None.shape,
        lambda: [][0],
        lambda: (lambda: 0)(1),
        lambda: int("x"),
        lambda: 1 / 0,
        lambda: (_ for _ in ()).throw(RuntimeError("ours")),
        lambda: (_ for _ in ()).throw(AssertionError()),
        lambda: torch.ones(2) @ torch.ones(3),  # torch's word on what we gave it
        lambda: np.ones(2) @ np.ones(3),
        lambda: __import__("rainfusion_trt.no_such_module"),
    ],
)
def test_what_is_ours_is_a_bug(fail):
    assert explain(caught(fail)) is None


def test_nothing_commands_the_terminal():
    assert one_line("a\nb\t c\x1b[31m\udcff\x00") == r"a b c\x1b[31m\udcff\x00"
    assert explain(InvalidInputError("two\nlines")) == "two lines"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--bogus",), "No such option: --bogus"),
        (("no-such-command",), "No such command 'no-such-command'"),
        (("run",), "Missing option '--prompt'"),
        (("run", "--fps", "x"), "Invalid value for '--fps'"),
        (("run", "--prompt", "x", "--checkpoint", "y", "--steps", "0"), "'--steps'"),
        (("export", "--config", "huge"), "huge"),
        (("build-engine",), "Missing argument"),
        (("build-plugin", "--jobs", "0"), "Invalid value for '--jobs'"),
    ],
)
def test_wrong_usage_is_one_line(arguments, words):
    result = RUNNER.invoke(app, list(arguments))
    assert result.exit_code == 2 and result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and words in line and "--help" in line


def test_help_is_no_error():
    assert RUNNER.invoke(app, ["--help"]).exit_code == 0
    assert RUNNER.invoke(app, ["run", "--help"]).exit_code == 0
    bare = RUNNER.invoke(app, [])
    assert "Usage" in bare.output and "error:" not in bare.output


def test_verbose_says_where_it_came_from():
    quiet = subprocess.run(
        [sys.executable, "-m", "rainfusion_trt.cli", "info", "--engine", "nowhere"],
        capture_output=True,
        text=True,
    )
    verbose = subprocess.run(
        [sys.executable, "-m", "rainfusion_trt.cli", "-v", "info", "--engine", "nowhere"],
        capture_output=True,
        text=True,
    )
    assert quiet.returncode == verbose.returncode == 2
    assert quiet.stderr.count("\n") == 1 and "load_metadata" not in quiet.stderr
    assert "load_metadata" in verbose.stderr


def test_a_command_of_its_own_has_the_same_border():
    alone = typer.Typer(pretty_exceptions_enable=False)

    @alone.command(cls=OneLineCommand)
    def run(kind: str) -> None:
        if kind == "bug":
            raise KeyError(kind)
        raise InvalidInputError(kind)

    refused = RUNNER.invoke(alone, ["value"])
    assert (refused.exit_code, refused.stderr) == (2, "error: value\n")
    bug = RUNNER.invoke(alone, ["bug"])
    assert bug.exit_code == 1 and "Traceback" in bug.stderr and "please report" in bug.stderr
    assert RUNNER.invoke(alone, []).exit_code == 2
