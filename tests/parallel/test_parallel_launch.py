"""``rainfusion-trt run --gpus N``: its processes start and end together, with one error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rainfusion_trt.errors import ParallelError, UnsupportedError
from rainfusion_trt.parallel.launch import launch
from tests.helpers.parallel_pipelines import wan


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parallel") / "wan"
    wan().save_pretrained(folder)
    return folder


@contextlib.contextmanager
def running(checkpoint: Path, output: Path, *more: str):
    """``run --gpus 2`` on the CPU, as a user starts it."""
    command = (sys.executable, "-m", "rainfusion_trt.cli", "run", "--prompt", "a fox")
    clip = ("--frames", "25", "--height", "128", "--width", "128", "--guidance", "4")
    where = (
        "--model",
        "wan2.1-1.3b",
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(output),
        "--device",
        "cpu",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    with subprocess.Popen(
        (*command, *clip, *where, "--gpus", "2", *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_video_is_written_once(checkpoint, tmp_path):
    output = tmp_path / "clip.mp4"
    with running(checkpoint, output, "--steps", "2", "--split-guidance") as process:
        out, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()
    assert out.decode().split() == [str(output)]  # said once
    assert errors.count(b"sparsity per step") == 1
    assert output.stat().st_size > 0 and list(tmp_path.iterdir()) == [output]


_WORK = """
import os, signal, sys, time
from pathlib import Path
from rainfusion_trt.errors import InvalidInputError, ParallelError
from rainfusion_trt.parallel.launch import reporting

folder, case = Path(sys.argv[1]), sys.argv[2]
rank = os.environ["RANK"]
(folder / rank).write_text(str(os.getpid()))
with reporting():
    while len(list(folder.iterdir())) < int(os.environ["WORLD_SIZE"]):
        time.sleep(0.01)
    if rank == "1" and case == "error":
        raise InvalidInputError("the cause")
    if rank == "1" and case == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if rank == "1" and case == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if rank == "0":
        time.sleep(0.5)
        raise ParallelError("a consequence")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)
"""


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("error", "the cause"),
        ("killed", "process 1 of this run was killed by SIGKILL"),
        ("stopped", "a consequence"),
    ],
)
def test_all_end_with_one_error(tmp_path, case, said):
    start = time.monotonic()
    with pytest.raises(ParallelError, match=f"^{said}$"):
        launch((sys.executable, "-c", _WORK, str(tmp_path), case), 3)
    assert time.monotonic() - start < 60
    assert len(list(tmp_path.iterdir())) == 3
    for number in tmp_path.iterdir():
        assert not Path(f"/proc/{number.read_text()}").exists()


def test_an_end_without_a_word_shows_its_output():
    work = "import os, sys; print('last words', file=sys.stderr); sys.exit(int(os.environ['RANK']))"
    with pytest.raises(ParallelError, match="process 1 of this run ended with status 1 last words"):
        launch((sys.executable, "-c", work), 2)


def test_a_bad_number_of_gpus_is_said_at_once():
    from typer.testing import CliRunner

    from rainfusion_trt.cli import app

    arguments = ["run", "--prompt", "x", "--checkpoint", "no", "--gpus", "3", "--split-guidance"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2 and "--split-guidance" in result.output


def test_onnx_runtime_is_refused_before_processes_are_started(monkeypatch):
    from typer.testing import CliRunner

    from rainfusion_trt.cli import app
    from rainfusion_trt.runtime import cli
    from rainfusion_trt.runtime.option_groups import Graphs

    monkeypatch.setattr(cli, "launch", lambda command, gpus: pytest.fail("were started"))
    arguments = ["run", "--prompt", "x", "--checkpoint", "no", "--gpus", "2"]
    result = CliRunner().invoke(app, [*arguments, "--backend", "onnxruntime"])
    assert result.exit_code == 2 and "the backend here is" in result.output
    with pytest.raises(UnsupportedError, match="build an engine"):
        cli._check_shared("auto", Graphs(onnx=Path("m.onnx")))
    cli._check_shared("auto", Graphs(engine=Path("m.engine"), onnx=Path("m.onnx")))


def test_overlap_of_engines_is_refused_before_processes_are_started(monkeypatch):
    from typer.testing import CliRunner

    from rainfusion_trt.cli import app
    from rainfusion_trt.runtime import cli
    from rainfusion_trt.runtime.option_groups import Graphs

    monkeypatch.setattr(cli, "launch", lambda command, gpus: pytest.fail("were started"))
    arguments = ["run", "--prompt", "x", "--checkpoint", "no", "--overlap"]
    one = CliRunner().invoke(app, arguments)
    assert one.exit_code == 2 and "ulysses=1 has none" in one.output
    result = CliRunner().invoke(app, [*arguments, "--gpus", "2", "--backend", "tensorrt"])
    assert result.exit_code == 2 and "overlap=True is for the PyTorch" in result.output
    for graphs in (Graphs(engine=Path("m.engine")), Graphs(onnx=Path("m.onnx"))):
        with pytest.raises(UnsupportedError, match="overlap=True is for the PyTorch"):
            cli._check_shared("auto", graphs, overlap=True)
        cli._check_shared("torch", graphs, overlap=True)
    cli._check_shared("auto", Graphs(), overlap=True)
    assert cli._parallel(4, True, 60.0, overlap=True).overlap
    cli._check_shared("torch", Graphs(onnx=Path("m.onnx")))
