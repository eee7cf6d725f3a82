"""Whatever stands on the command line: status 0 or one line and status 2, and nothing written.

Every call lacks something that it needs (a checkpoint, a model, a plugin), so that none begins to
work.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helpers.engine_models import PROFILE, write_model
from helpers.fuzzing import NUMBERS, TEXTS, bounded, damaged_bytes, nothing_written
from rainfusion_trt.cli import app

VALUES = st.one_of(
    st.sampled_from(["0", "-1", "1", "2", "inf", "nan", "", ".", "..", "/", "/dev/null", "x.mp4"]),
    st.sampled_from(["cogvideox-5b", "wan2.1-1.3b", "tensorrt", "torch", "cuda:7", "meta", "sm80"]),
    st.sampled_from(["native", "cogvideox-5b.yaml", "m.onnx", "e.engine", "recipe.yaml", "1,2,3"]),
    NUMBERS.map(lambda number: str(number)[:400]),
    TEXTS,
)
OPTIONS = {
    "run": {
        "values": """prompt output model engine onnx engine-2 onnx-2 backend negative-prompt steps
            guidance frames height width sparsity dense-fraction seed fps device
            cache cache-threshold cache-ratios attention-precision first-16bit last-16bit""",
        "flags": "overwrite cuda-graph cpu-offload vae-tiling allow-fallback allow-dense profile",
        "needed": ("--prompt", "a fox", "--checkpoint", "nowhere"),
    },
    "export": {
        "values": """model module grid text text-tokens kv-len attentions component lora config
            layers seed frames height width batch dtype method alpha sink-frames
            attention-precision output device""",
        "flags": "no-weights dynamic fixed compare",
        "needed": ("--checkpoint", "nowhere"),
    },
    "build-engine": {
        "values": "recipe plugin output target flavour",
        "flags": "force",
        "needed": ("m.onnx", "--plugin", "nowhere.so"),
    },
    "info": {"values": "engine", "flags": "", "needed": ("--engine", "e.engine")},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory: a model, a recipe and an engine folder, none of which will do."""
    folder = tmp_path_factory.mktemp("cwd")
    write_model(folder / "m.onnx")
    (folder / "recipe.yaml").write_text(PROFILE)
    (folder / "e.engine").mkdir()
    (folder / "x.mp4").write_bytes(b"a video of the user's own")
    before = Path.cwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield folder
    os.chdir(before)


@st.composite
def calls(draw: st.DrawFn, command: str) -> list[str]:
    known = OPTIONS[command]
    arguments = [command, *known["needed"]]
    for _ in range(draw(st.integers(0, 4))):
        if known["flags"] and draw(st.integers(0, 3)) == 0:
            arguments.append(f"--{draw(st.sampled_from(known['flags'].split()))}")
        else:
            name = draw(st.sampled_from(known["values"].split()))
            arguments += [f"--{name}", draw(VALUES)]
    if draw(st.integers(0, 9)) == 0:
        arguments.insert(draw(st.integers(0, len(arguments))), draw(VALUES))
    return arguments


def check(arguments: list[str], folder: Path) -> None:
    with nothing_written(folder):
        result = CliRunner().invoke(app, arguments)
    if result.exit_code == 0:
        assert "--help" in arguments or not result.stderr
        return
    assert result.exit_code == 2, (arguments, result.output)
    assert result.stderr.count("error: ") >= 1 and "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and line.isprintable() and len(line) < 3000
    assert result.stdout == ""


@bounded(60)
@given(arguments=calls("run"))
@example(["run", "--prompt", "x", "--checkpoint", "\ud800"])
@example(["run", "--prompt", "x", "--checkpoint", "a\0b"])
def test_run(folder, arguments):
    check(arguments, folder)


@bounded(60)
@given(arguments=calls("export"))
def test_export(folder, arguments):
    check(arguments, folder)


@bounded(60)
@given(arguments=calls("build-engine"))
def test_build_engine(folder, arguments):
    check(arguments, folder)


@bounded(20)
@given(arguments=calls("info"))
def test_info(folder, arguments):
    check(arguments, folder)


@bounded(60)
@given(content=damaged_bytes(PROFILE.encode()) | st.binary(max_size=30))
@example(b"[" * 20_000)
@example(b"precision: float16\nshapes: &a {x: *a}\n")
@example(b"precision: float16\nsizes: {a: {frames: !!python/object/apply:os.getpid []}}\n")
def test_any_recipe(folder, content):
    (folder / "recipe.yaml").write_bytes(content)
    check(["build-engine", "m.onnx", "--recipe", "recipe.yaml", "--plugin", "nowhere.so"], folder)
