"""The command line: help, errors, and one run on a tiny model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from helpers.cogvideox_pipeline import tiny_pipeline
from helpers.engine_folders import engine_metadata
from rainfusion_trt import environment
from rainfusion_trt.cli import app
from rainfusion_trt.engine.metadata import save_metadata
from rainfusion_trt.errors import NotFiniteError
from rainfusion_trt.models import VideoSize, get_model, model_names
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.plugin.build import source_directory

COMMANDS = (
    "build-plugin",
    "build-engine",
    "run",
    "serve",
    "calibrate-cache",
    "models",
    "info",
)


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
        "print([m for m in ('torch', 'diffusers', 'onnx', 'tensorrt', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("build-engine", "no.onnx", "--recipe", "no.yaml"), "no.yaml"),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--output", "out/x.gif"),
            "out/x.gif has to end in .mp4",
        ),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--engine", "no"),
            "no is not an engine folder",
        ),
        (
            ("run", "--prompt", "x", "--checkpoint", "no", "--preset", "best"),
            "preset='best' is not one of quality, balanced, fast",
        ),
        (
            (
                "run",
                "--prompt",
                "x",
                "--checkpoint",
                "no",
                "--model",
                "allegro",
                "--method",
                "magic",
            ),
            "method='magic' is not one of rainfusion, ",
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


def run_arguments(output: Path, *more: str) -> tuple[str, ...]:
    # The checkpoint does not exist: an error that names something else came before it was read.
    return ("run", "--prompt", "x", "--checkpoint", "no", "--output", str(output), *more)


def refusal(*arguments: str) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]  # below the bars of loading, if it came so far
    assert line.startswith("error: ") and result.stderr.count("error: ") == 1
    return line


def test_targets_are_checked_before_anything_is_loaded(tmp_path, monkeypatch):
    folder, foreign = tmp_path / "x.mp4", tmp_path / "holiday.mp4"
    folder.mkdir()
    foreign.write_bytes(b"a video of the user's own")
    assert "is a folder" in refusal(*run_arguments(folder))
    assert "--overwrite" in refusal(*run_arguments(foreign))
    assert foreign.read_bytes() == b"a video of the user's own"
    assert "cannot be written" in refusal(*run_arguments(Path("/proc/x.mp4")))
    for fps in ("0", "-1", "1001"):
        assert f"fps is {fps}" in refusal(*run_arguments(tmp_path / "new.mp4", "--fps", fps))
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "av", None)
        assert "pip install av" in refusal(*run_arguments(tmp_path / "new.mp4"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["holiday.mp4", "x.mp4"]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--fps", "0", "fps is 0"),
        ("--frames", "0", "num_frames is 0"),
        ("--height", "0", "height is 0"),
        ("--width", "-8", "width is -8"),
        ("--steps", "0", "--steps"),
        ("--guidance", "nan", "guidance_scale is nan"),
        ("--seed", str(2**64), f"seed is {2**64}"),
    ],
)
def test_numbers_are_checked_before_anything_is_loaded(tmp_path, option, value, words):
    output = tmp_path / "x.mp4"
    assert words in refusal(*run_arguments(output, "--model", "cogvideox", option, value))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--frames", "0", "frames=0 must be"),
        ("--height", "0", "height=0 must be"),
        ("--width", "-16", "width=-16 must be"),
        ("--batch", "0", "--batch is 0"),
        ("--layers", "0", "--layers is 0"),
        ("--seed", str(2**64), "seed is"),
        ("--alpha", "nan", "alpha=nan"),
        ("--sink-frames", str(2**31), "sink_frames=2147483648"),
        ("--last-sink-frames", "-1", "last_sink_frames=-1"),
        ("--exact-frames", "4-6", "exact_frames '4-6' is neither a latent frame"),
        ("--dtype", "int4", "dtype 'int4'"),
    ],
)
def test_exports_of_nothing_are_refused(tmp_path, option, value, words):
    tiny = ("--model", "cogvideox-5b", "--config", "tiny", "--random-weights")
    target = ("--output", str(tmp_path / "m.onnx"))
    assert words in refusal("export", *tiny, *target, option, value)
    assert not list(tmp_path.iterdir())


def test_info_shows_what_metadata_says_as_it_is(tmp_path):
    """Neither markup nor commands for the terminal."""
    said = engine_metadata(device="[/red]:boom: \x1b[2J", component="[bold]x")
    (tmp_path / "engine.plan").write_bytes(b"engine")
    save_metadata(tmp_path, said)
    result = invoke("info", "--engine", str(tmp_path))
    assert result.exit_code == 0, result.output
    assert r"[/red]:boom: \x1b[2J" in result.stdout and "[bold]x" in result.stdout
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("precision", ["16bit", "8bit"])
def test_info_shows_the_precision_of_attention(tmp_path, precision):
    """Beside that of the weights, and also the one that a record leaves out."""
    settings = AttentionSettings(precision=precision)
    (tmp_path / "engine.plan").write_bytes(b"engine")
    save_metadata(tmp_path, engine_metadata(settings=settings))
    lines = [line.split() for line in invoke("info", "--engine", str(tmp_path)).stdout.splitlines()]
    assert ["attention", "precision", precision] in lines and ["precision", "float16"] in lines


@pytest.mark.parametrize(
    "change",
    [
        {"targets": []},
        {"profiles": ["[/red]"]},
        {"loras": "[/red]"},
        {"[/red]": 1},
        {"size": "[/x"},
    ],
)
def test_info_on_damaged_metadata_is_one_line(tmp_path, change):
    (tmp_path / "engine.plan").write_bytes(b"engine")
    save_metadata(tmp_path, engine_metadata())
    file = tmp_path / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert "metadata.json cannot be read" in refusal("info", "--engine", str(tmp_path))


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(28, "No space left on device", "/tmp/x"), "/tmp/x: No space left on device"),
        (PermissionError(13, "Permission denied", "/tmp/x"), "/tmp/x: Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto"), "out of memory (CUDA out of"),
        (NotFiniteError("the frames\nare not finite"), "the frames are not finite"),
    ],
)
def test_errors_of_others_that_a_user_can_mend(monkeypatch, error, words):
    def fail():
        raise error

    monkeypatch.setattr("rainfusion_trt.environment.survey", fail)
    assert words in refusal("info")


def test_a_bug_shows_its_traceback_and_asks_for_a_report(monkeypatch):
    monkeypatch.setattr("rainfusion_trt.environment.survey", lambda: {}["missing"])
    result = invoke("info")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "KeyError: 'missing'" in result.stderr
    assert "please report it" in result.stderr


def test_info_names_what_is_found_and_what_is_missing():
    result = invoke("info")
    assert result.exit_code == 0
    for part in ("Python", "torch", "GPU", "onnxruntime", "tensorrt_rtx", "plugin library"):
        assert part in result.stdout


def test_info_prints_remedies_word_for_word(monkeypatch):
    remedy = "pip install 'rainfusion-trt[rtx]'"
    monkeypatch.setattr(environment, "survey", lambda: [environment.Finding("part", "", remedy)])
    assert remedy in invoke("info").stdout


def test_models_are_those_of_the_registry():
    """Beside what the registry says, head sizes, tokens and modes that docs/models.md has."""
    rows = {row["name"]: row for row in json.loads(invoke("models", "--json").stdout)}
    assert list(rows) == model_names()
    documented = {}
    for line in (source_directory() / "docs" / "models.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = cells[0].split("`")[1] if cells[0].startswith("`") else None
        if name in rows and name not in documented:
            documented[name] = cells
    for name, row in rows.items():
        _, transformer, head, text, _, size, tokens, *_ = documented[name]
        assert transformer.startswith(row["transformer"]) and size == row["size"]
        assert row["head_size"] == int(head) and text.startswith(row["text"])
        of_text = [int(n.replace(",", "")) for n in re.findall(r" ([\d,]*\d)", text)[:1]]
        assert row["video_tokens"] + sum(of_text) == int(tokens.replace(",", ""))
        assert row["recipe"] in (name, None)
        assert not row["recipe_sizes"] or row["size"] in row["recipe_sizes"]
    assert rows["wan2.2-a14b"]["components"] == ["transformer", "transformer_2"]
    assert rows["hunyuanvideo"]["layers"] == 60 and rows["wan2.1-14b"]["layers"] == 40
    assert "text" in rows["wan2.1-14b"]["modes"]
    table = invoke("models").stdout
    assert all(name in table for name in rows) and "2 x 40" in table
    assert rows["ltx-2"]["on_gpu"] == "2 blocks, H200" and rows["ltx-2.3"]["on_gpu"] is None
    assert table.count(" 2 blocks, H100") == 4 and "not run" in table
    assert all(pipeline in table for row in rows.values() for pipeline in row["pipelines"])


def test_recipe_that_is_neither_file_nor_name(tmp_path):
    onnx = tmp_path / "model.onnx"
    onnx.write_bytes(b"")
    for option in ("--recipe", "--profile"):  # its name, and that of 0.1
        result = invoke("build-engine", str(onnx), option, "cogvideox-6b")
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
        assert "cogvideox-6b" in result.stderr and "cogvideox-5b" in result.stderr


def test_run_writes_an_mp4(tmp_path: Path):
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "new" / "clip.mp4"
    tiny_pipeline(get_model("cogvideox"), size=VideoSize(9, 64, 96)).save_pretrained(checkpoint)
    size = ("--frames", "9", "--height", "64", "--width", "96", "--steps", "2")
    arguments = ("--prompt", "a fox", "--model", "cogvideox", "--backend", "torch")
    arguments += ("--method", "rainfusion")
    paths = ("--checkpoint", str(checkpoint), "--output", str(output))
    result = invoke(
        "run", *arguments, *size, *paths, "--profile", "--device", "cpu", "--vae-tiling"
    )
    assert result.exit_code == 0, result.stderr
    assert result.stdout.strip() == str(output)
    assert "transformer ms" in result.stderr
    assert output.stat().st_size > 1000
    again = ("run", *arguments, *size, *paths, "--device", "cpu")
    for more, words in {
        ("--guidance", "inf"): "guidance_scale is inf",
        ("--frames", "0"): "num_frames is 0",
        ("--height", "0"): "height is 0",
        ("--height", "60"): "height=60 must be a multiple of 16",
        ("--frames", "5"): "allow_dense",
        ("--method", "piecewise"): "one window of method 'piecewise'",
    }.items():
        content = output.read_bytes()
        assert words in refusal(*again, *more)
        assert output.read_bytes() == content
    result = invoke(*again, "--frames", "5", "--allow-dense")  # over what it wrote before
    assert result.exit_code == 0, result.stderr
    assert [p.name for p in output.parent.iterdir()] == ["clip.mp4"]
