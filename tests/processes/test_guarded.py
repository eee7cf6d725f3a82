"""Commands end with what started them, together with all that came of them.

Real processes, killed with SIGKILL. Whether one lives is told by a lock that it has inherited.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rainfusion_trt.processes.run import guarded

PARENT = """
import os, sys
from rainfusion_trt.processes.run import guarded

with open(sys.argv[1], "a") as lock:
    with guarded(sys.argv[2:], keep=[lock.fileno()]) as process:
        process.wait()
"""
# A tree of processes: in the background, in a session of its own, and one that ignores SIGTERM.
TREE = """
sleep 600 &
setsid sleep 600 &
setsid sh -c 'sleep 600 & exec sleep 600' &
( trap '' TERM; echo ready; sleep 600; sleep 600 )
"""


def start(lock: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, str(lock), *command],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def is_held(lock: Path) -> bool:
    """Whether any process has the file open that the command inherited."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if link.readlink() == lock:
                return True
        except OSError:
            continue
    return False


def ends(lock: Path, seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while is_held(lock):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_tree_ends_with_its_parent(tmp_path, number):
    lock = tmp_path / "lock"
    process = start(lock, "sh", "-c", TREE)
    assert process.stdout.readline() == "ready\n"
    assert is_held(lock)
    process.send_signal(number)
    process.wait(30)
    assert ends(lock)
    process.stdout.close()


def test_a_tree_ends_with_its_guard_or_keeps_the_lock(tmp_path):
    """If the guard itself is killed, the lock still says that somebody is at work."""
    lock = tmp_path / "lock"
    process = start(lock, "sh", "-c", "echo $PPID $$; exec sleep 600")
    guard, child = map(int, process.stdout.readline().split())
    os.kill(guard, signal.SIGKILL)
    process.wait(30)
    process.stdout.close()
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody locked: it was only inherited
    assert is_held(lock)
    os.kill(child, signal.SIGKILL)
    assert ends(lock)


def test_what_a_command_leaves_running_ends_with_it(tmp_path):
    lock = tmp_path / "lock"
    process = start(lock, "sh", "-c", "setsid sleep 600 & exit 0")
    assert process.wait(30) == 0
    assert ends(lock, 0.0)
    process.stdout.close()


@pytest.mark.parametrize(
    ("command", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -ABRT $$", -6), ("kill -KILL $$", -9), ("kill $$", -15)],
)
def test_it_ends_as_the_command_does(command, code):
    with guarded(["sh", "-c", command]) as process:
        assert process.wait(30) == code


def test_a_program_that_is_not_there():
    with guarded(["/no/such/program"], stderr=subprocess.PIPE) as process:
        assert process.stderr.read() == b"/no/such/program: No such file or directory\n"
        assert process.wait(30) == 127


def test_leaving_the_block_ends_it(tmp_path):
    started = time.monotonic()
    with pytest.raises(RuntimeError), guarded(["sleep", "600"]) as process:
        raise RuntimeError
    assert process.returncode == -signal.SIGKILL
    assert time.monotonic() - started < 20


def test_nothing_is_imported_from_the_working_directory(tmp_path, monkeypatch):
    for name in ("ctypes", "select", "contextlib", "sitecustomize"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with guarded(["true"], stderr=subprocess.PIPE) as process:
        assert process.wait(30) == 0
        assert process.stderr.read() == b""


def test_input_output_and_environment_pass_through(monkeypatch):
    monkeypatch.setenv("RAINFUSION_WORD", "word")
    command = ["sh", "-c", 'cat; echo "$RAINFUSION_WORD"']
    with guarded(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.communicate(b"in ")[0] == b"in word\n"
