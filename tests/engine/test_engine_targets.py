"""Engine folders: what a build replaces, what it never touches, and what a kill leaves.

Workers here are small programs that write a plan; builds by TensorRT are in test_engine_build.py.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.running import processes_of
from rainfusion_trt.engine import build as module
from rainfusion_trt.engine import build_engine, load_metadata
from rainfusion_trt.engine import folder as folders
from rainfusion_trt.engine.metadata import EngineMetadata
from rainfusion_trt.engine.process import run_worker
from rainfusion_trt.engine.recipe import BuilderSettings, EngineRecipe
from rainfusion_trt.errors import EngineBuildError, InvalidInputError
from rainfusion_trt.files.staging import staging, staging_folder

PLAN = b"a plan that no TensorRT would load"
WORKER = """
import json, sys, time
from pathlib import Path

request = json.load(sys.stdin)
Path(request["plan"]).write_bytes({plan!r})
print(json.dumps({{"event": "log", "severity": "info", "text": "planned"}}), flush=True)
time.sleep({seconds})
tensor = {{"dtype": "float16", "shape": [2, 3]}}
print(json.dumps({{
    "event": "built", "plugin_layers": 1,
    "inputs": [{{"name": "x", **tensor}}], "outputs": [{{"name": "sample", **tensor}}],
    "engine_size": {size}, "engine_sha256": {sha256!r},
}}), flush=True)
"""
FACTS = {
    "model": "cogvideox-5b",
    "component": "transformer",
    "config": {},
    "size": "9x64x96",
    "settings": {"method": "rainfusion", "alpha": 0.9, "sink_frames": 1},
    "loras": (),
    "weights_sha256": {},
    "precision": "float16",
    "flavour": "tensorrt_rtx",
    "version": "1.7.1.116",
    "targets": ("sm80",),
    "device": None,
    "profiles": (),
    "builder": BuilderSettings(),
    "plugin": {"file": "librainfusion_trt.so", "sha256": "0" * 64, "build": "0.2.0"},
    "onnx": "m.onnx",
    "onnx_sha256": "1" * 64,
    "onnx_files": (),
}
REQUEST = {
    "onnx": "m.onnx",
    "plugin": "p.so",
    "plan": "engine.plan",
    "flavour": "tensorrt_rtx",
    "targets": ("sm80",),
    "profiles": {},
    "builder": BuilderSettings(),
    "attention_nodes": ("a",),
}


def worker(plan: bytes = PLAN, seconds: float = 0.0) -> tuple[str, ...]:
    sha256 = hashlib.sha256(plan).hexdigest()
    program = WORKER.format(plan=plan, seconds=seconds, size=len(plan), sha256=sha256)
    return (sys.executable, "-c", program)


@pytest.fixture
def builder(tmp_path, monkeypatch):
    """`build_engine` with a worker that writes `builder.plan`, whose key is its hash."""
    state = SimpleNamespace(plan=PLAN, seconds=0.0, started=[])
    made = SimpleNamespace(tensorrt="TensorRT", place=("sm80",))

    def sources(_build, _previous):
        return SimpleNamespace(key=hashlib.sha256(state.plan).hexdigest())

    def run(request, display, **options):
        state.started.append(request.plan)
        return run_worker(request, display, worker(state.plan, state.seconds), **options)

    monkeypatch.setattr(module, "_checked", lambda *_: made)
    monkeypatch.setattr(module, "_sources", sources)
    monkeypatch.setattr(module, "_request", lambda *_: module.BuildRequest(**REQUEST))
    monkeypatch.setattr(module, "_facts", lambda _build, found: {**FACTS, "key": found.key})
    monkeypatch.setattr(folders, "run_worker", run)
    recipe = EngineRecipe(precision="float16")
    state.build = partial(build_engine, tmp_path / "m.onnx", recipe=recipe, progress=False)
    return state


def tree(folder: Path) -> dict[str, bytes | None]:
    """All below a folder, with its content."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- folders of others -----------------------------------------------------------------------------


def video(folder: Path) -> None:
    (folder / "holiday.mp4").write_bytes(b"sun")


def metadata_of_something_else(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"title": "holiday"}')


def everything(folder: Path) -> None:
    video(folder)
    metadata_of_something_else(folder)
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("mine")


def plan_of_another_program(folder: Path) -> None:
    metadata_of_something_else(folder)
    (folder / "engine.plan").write_bytes(b"of trtexec")


def plan_alone(folder: Path) -> None:
    (folder / "engine.plan").write_bytes(b"of trtexec")


def damaged_metadata(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"schema_version": 1, ')
    (folder / "engine.plan").write_bytes(PLAN)


def metadata_that_is_a_list(folder: Path) -> None:
    (folder / "metadata.json").write_text("[]")


def nested_metadata(folder: Path) -> None:
    (folder / "metadata.json").write_text("[" * 100_000)


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "fill",
    [
        video,
        metadata_of_something_else,
        everything,
        plan_of_another_program,
        plan_alone,
        damaged_metadata,
        metadata_that_is_a_list,
        nested_metadata,
    ],
)
def test_a_folder_of_something_else_is_not_touched(builder, tmp_path, fill, force):
    folder = tmp_path / "D"
    folder.mkdir()
    fill(folder)
    before = tree(tmp_path)
    with pytest.raises(InvalidInputError, match="D exists and is not an engine folder"):
        builder.build(output=folder, force=force)
    assert tree(tmp_path) == before
    assert not builder.started


def add_notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def add_folder(folder: Path) -> None:
    (folder / "notes").mkdir()


def add_file_of_a_known_name_as_folder(folder: Path) -> None:
    (folder / "runtime.cache").mkdir()
    (folder / "runtime.cache" / "a").write_text("mine")


@pytest.mark.parametrize("add", [add_notes, add_folder, add_file_of_a_known_name_as_folder])
def test_what_a_user_put_into_an_engine_folder_is_kept(builder, tmp_path, add):
    folder = builder.build()
    add(folder)
    before = tree(tmp_path)
    assert builder.build() == folder  # nothing to build, so that nothing is in danger
    builder.plan = b"another"
    for force in (False, True):
        with pytest.raises(InvalidInputError, match="which no build has put there: move that"):
            builder.build(force=force)
    assert tree(tmp_path) == before
    assert len(builder.started) == 1


def test_notes_that_come_during_the_build_are_kept_and_so_is_the_engine(builder, tmp_path):
    folder = builder.build()
    builder.plan, builder.seconds = b"another", 1.0
    thread = threading.Thread(
        target=lambda: (time.sleep(0.3), (folder / "notes").write_text("mine"))
    )
    thread.start()
    with pytest.raises(InvalidInputError, match=r"The new engine is in .*m\.engine\.\d"):
        builder.build()
    thread.join()
    assert names(folder) == ["engine.plan", "metadata.json", "notes"]
    (aside,) = tmp_path.glob("m.engine.2*")
    assert (aside / "engine.plan").read_bytes() == b"another"
    load_metadata(aside)
    load_metadata(folder)


def test_no_folder_can_be_put_there(builder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(module, "_checked", lambda *_: pytest.fail("the work has started"))
    before = tree(tmp_path)
    for output, words in {
        "../file": "is a file: name a folder",
        "../link": "is a link",
        "../dangling": "is a link",
        ".": "is the working directory",
        "../file/x": "is not a folder",
        "/proc/x": "cannot be written",
        "/proc": "not an engine folder",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            builder.build(output=output)
    assert tree(tmp_path) == before


def test_an_engine_that_is_a_mount_is_used_but_not_replaced(builder, monkeypatch):
    folder = builder.build()
    monkeypatch.setattr(Path, "is_mount", lambda self: self == folder)
    assert builder.build() == folder
    with pytest.raises(InvalidInputError, match="is a mount"):
        builder.build(force=True)


# -- its own folders -------------------------------------------------------------------------------


def test_an_empty_folder_and_its_own_are_replaced(builder, tmp_path):
    (tmp_path / "m.engine").mkdir()
    folder = builder.build()
    (folder / "runtime.cache").write_bytes(b"compiled")
    builder.plan = b"another"
    assert builder.build() == folder
    assert names(folder) == ["engine.plan", "metadata.json"]
    assert (folder / "engine.plan").read_bytes() == b"another"
    assert names(tmp_path) == ["m.engine"]


def of_version_0_2(metadata: dict) -> None:
    del metadata["format"]


def of_a_later_version(metadata: dict) -> None:
    metadata |= {"schema_version": 99, "new": 1}


@pytest.mark.parametrize("change", [of_version_0_2, of_a_later_version])
def test_engines_of_other_versions_are_replaced(builder, change):
    folder = builder.build()
    file = folder / "metadata.json"
    metadata = json.loads(file.read_text())
    change(metadata)
    file.write_text(json.dumps(metadata))
    builder.plan = b"another"
    builder.build()
    assert (folder / "engine.plan").read_bytes() == b"another"


@pytest.mark.parametrize("damage", [b"", PLAN[:-1], PLAN[:-1] + b"x"])
def test_a_damaged_plan_is_built_again(builder, damage):
    folder = builder.build()
    (folder / "engine.plan").write_bytes(damage)
    builder.build()
    assert (folder / "engine.plan").read_bytes() == PLAN
    assert len(builder.started) == 2


def test_a_failed_build_leaves_the_old_engine(builder, tmp_path, monkeypatch):
    folder = builder.build()
    before = tree(tmp_path)
    command = (sys.executable, "-c", "import os; os.abort()")
    run = lambda request, display, **options: run_worker(request, display, command, **options)  # noqa: E731
    monkeypatch.setattr(folders, "run_worker", run)
    with pytest.raises(EngineBuildError, match="SIGABRT"):
        builder.build(force=True)
    assert tree(tmp_path) == before
    assert load_metadata(folder).key


# -- two at once, and killed -----------------------------------------------------------------------


def test_two_builds_of_one_engine_are_one(builder, tmp_path):
    builder.seconds = 0.5
    threads = [threading.Thread(target=builder.build) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builder.started) == 1
    assert names(tmp_path) == ["m.engine"]


BUILD = """
import sys
from functools import partial
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_engine_targets import FACTS, PLAN, REQUEST, worker
from rainfusion_trt.engine import folder, process
from rainfusion_trt.engine.messages import BuildRequest
from rainfusion_trt.files.staging import staging

folder.run_worker = lambda request, display, **options: process.run_worker(
    request, lambda event: print(event.text, flush=True), worker(PLAN, 600), **options
)
with staging(Path(sys.argv[1])) as stage:
    folder.write_engine(stage, BuildRequest(**REQUEST), {**FACTS, "key": "2" * 64}, False)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_build_ends_its_worker_and_is_cleaned(builder, tmp_path, number):
    folder = tmp_path / "m.engine"
    builder.build()
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(folder), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "planned\n"
    assert processes_of("time.sleep(600)")
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    deadline = time.monotonic() + 20
    while processes_of("time.sleep(600)") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not processes_of("time.sleep(600)")
    assert staging_folder(folder).exists() is (number != signal.SIGINT)
    assert load_metadata(folder).engine_size == len(PLAN)
    with staging(tmp_path / "other"):
        assert not staging_folder(folder).exists()
    assert names(tmp_path) == ["m.engine"]


def test_the_metadata_says_whose_it_is(builder):
    folder = builder.build()
    assert json.loads((folder / "metadata.json").read_text())["format"] == "rainfusion-trt engine"
    assert isinstance(load_metadata(folder), EngineMetadata)
