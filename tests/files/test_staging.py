"""Staging folders: whole or absent, one process at a time, nothing left by those that were killed.

The processes here are real and are killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.staging import remove_leftovers, staging, staging_folder

# Makes a pair of files; stops for ever at the point that the third argument names.
PAIR = """
import sys, time
from pathlib import Path
from rainfusion_trt.files import staging as module

target, text, stop = Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def wait(point):
    if point == stop:
        print(point, flush=True)
        time.sleep(600)

def rename(path, place):
    original(path, place)
    wait(f"{path.parent.name} {path.name} {place.parent.name}")

original, Path.rename = Path.rename, rename
with module.staging(target) as stage:
    for name in (target.name, target.name + ".data"):
        (stage.new / name).write_text(text)
    wait("made")
    stage.publish(target.name + ".data")
    wait("published")
"""
IN_TURN = [
    "made",
    "{dir} m old",  # the old target is away
    "{dir} m.data old",
    "new m.data {dir}",  # the new data is there
    "new m {dir}",  # and the new target
    "published",
]


def start(target: Path, text: str, stop: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", PAIR, str(target), text, stop],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline().strip() == stop
    return process


def kill(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdout.close()


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write(target: Path, text: str) -> None:
    with staging(target) as stage:
        (stage.new / target.name).write_text(text)
        stage.publish()


@pytest.mark.parametrize("point", IN_TURN)
def test_killed_at_any_point_it_is_the_old_pair_or_the_new(tmp_path, point):
    """At each point, before and after the next run has looked."""
    target = tmp_path / "m"
    target.write_text("old")
    target.with_name("m.data").write_text("old")
    kill(start(target, "new", point.format(dir=tmp_path.name)))
    there = content_of_pair(tmp_path)
    if "m" in there:
        assert there["m"] == there["m.data"]  # the target never stands beside others' data
    remove_leftovers(tmp_path)
    whole = "new" if point in IN_TURN[-2:] else "old"
    assert content(tmp_path) == {"m": whole, "m.data": whole}


def content_of_pair(folder: Path) -> dict[str, str]:
    paths = (folder / "m", folder / "m.data")
    return {path.name: path.read_text() for path in paths if path.exists()}


def test_killed_before_there_was_anything_it_leaves_nothing(tmp_path):
    for point in ("made", f"new m.data {tmp_path.name}"):
        kill(start(tmp_path / "m", "new", point))
        assert list(tmp_path.iterdir())
        remove_leftovers(tmp_path)
        assert content(tmp_path) == {}


def test_data_that_was_changed_after_the_kill_is_kept(tmp_path):
    kill(start(tmp_path / "m", "new", f"new m.data {tmp_path.name}"))
    (tmp_path / "m.data").write_text("mine")
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"m.data": "mine"}


@pytest.mark.parametrize("text", ["", "[]", '{"m.data": '])
def test_a_damaged_account_of_moves_stops_nobody(tmp_path, text):
    """Then nothing proves whose the data is, so that it stays."""
    kill(start(tmp_path / "m", "new", f"new m.data {tmp_path.name}"))
    (staging_folder(tmp_path / "m") / "moves").write_text(text)
    remove_leftovers(tmp_path)
    assert content(tmp_path) == {"m.data": "new"}


def test_the_next_run_of_another_target_cleans(tmp_path):
    kill(start(tmp_path / "m", "new", "made"))
    write(tmp_path / "other", "x")
    assert content(tmp_path) == {"other": "x"}


def test_what_a_living_process_makes_is_left_alone_and_waited_for(tmp_path):
    process = start(tmp_path / "m", "first", "made")
    remove_leftovers(tmp_path)
    write(tmp_path / "other", "x")
    assert (staging_folder(tmp_path / "m") / "new" / "m").read_text() == "first"
    second = threading.Thread(target=write, args=(tmp_path / "m", "second"))
    second.start()
    second.join(0.5)
    assert second.is_alive()
    kill(process)
    second.join(30)
    assert content(tmp_path) == {"m": "second", "other": "x"}


@pytest.fixture
def quick_switches():
    """Threads by turns so often that they meet everywhere."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def test_many_at_once_never_mix(tmp_path):
    def pair(text: str) -> None:
        with staging(tmp_path / "m") as stage:
            for name in ("m", "m.data"):
                (stage.new / name).write_text(text)
                time.sleep(0.002)
            stage.publish("m.data")

    threads = [threading.Thread(target=pair, args=(str(n),)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = content(tmp_path)
    assert set(there) == {"m", "m.data"} and there["m"] == there["m.data"]


def test_the_folder_may_go_at_any_moment(tmp_path, quick_switches):
    failures = []

    def work() -> None:
        for _ in range(300):
            if failures:
                return
            try:
                with staging(tmp_path / "m"):
                    pass
            except Exception as error:  # shown by the test
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("link", [False, True])
def test_a_file_or_a_dangling_link_of_that_name_is_an_error(tmp_path, link):
    folder = staging_folder(tmp_path / "m")
    if link:
        folder.symlink_to("nowhere")
    else:
        folder.write_text("the user's")
    refused = pytest.raises(InvalidInputError, match="cannot be written: File exists")
    with refused, staging(tmp_path / "m"):
        pass
    assert os.path.lexists(folder)


def test_a_child_that_lives_on_holds_the_lock(tmp_path):
    """Its parent is gone, but it still writes."""
    code = (
        "import subprocess, sys, time; from pathlib import Path; "
        "from rainfusion_trt.files.staging import staging\n"
        "with staging(Path(sys.argv[1])) as stage:\n"
        "    child = subprocess.Popen(['sleep', '600'], pass_fds=[stage.lock])\n"
        "    print(child.pid, flush=True); time.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "m")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    child = int(process.stdout.readline())
    kill(process)
    remove_leftovers(tmp_path)
    assert staging_folder(tmp_path / "m").exists()
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
        remove_leftovers(tmp_path)
    assert content(tmp_path) == {}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError])
def test_a_failure_leaves_what_was_there(tmp_path, failure):
    target = tmp_path / "m"
    write(target, "old")
    with contextlib.suppress(failure), staging(target) as stage:
        (stage.new / "m").write_text("new")
        raise failure
    assert content(tmp_path) == {"m": "old"}


def test_a_folder_replaces_its_predecessor(tmp_path):
    for text in ("one", "two"):
        with staging(tmp_path / "d") as stage:
            (stage.new / "d").mkdir()
            (stage.new / "d" / text).write_text(text)
            stage.publish()
    assert content(tmp_path / "d") == {"two": "two"}
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


# -- folders that are not ours ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "fill",
    [
        lambda folder: (folder / "notes").write_text("mine"),
        lambda folder: (folder / "owner").write_text("me"),
        lambda folder: [(folder / name).write_text("") for name in ("owner", "notes")],
        lambda folder: (folder / "owner").symlink_to(folder / "notes"),
    ],
)
def test_a_folder_of_that_name_is_not_touched(tmp_path, fill):
    folder = staging_folder(tmp_path / "m")
    folder.mkdir()
    fill(folder)
    before = sorted(path.name for path in folder.iterdir())
    remove_leftovers(tmp_path)
    write(tmp_path / "other", "x")
    assert sorted(path.name for path in folder.iterdir()) == before
    with pytest.raises(InvalidInputError, match=r"in the way of|cannot be written"):
        write(tmp_path / "m", "x")
    assert sorted(path.name for path in folder.iterdir()) == before


def test_a_link_of_that_name_is_not_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    staging_folder(tmp_path / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InvalidInputError, match="in the way of"):
        write(tmp_path / "m", "x")
    assert not (tmp_path / "m").exists()


def test_without_locks_one_that_may_be_alive_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write(tmp_path / "m", "first")
    with staging(tmp_path / "m"):
        remove_leftovers(tmp_path)
        with pytest.raises(InvalidInputError, match="another process is writing .*if none is"):
            write(tmp_path / "m", "second")
    assert content(tmp_path) == {"m": "first"}
