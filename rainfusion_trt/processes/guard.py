"""Runs a command and ends with it all that came of it, at the latest when its own parent ends.

``python -I -S guard.py FD COMMAND ...``: FD is the reading end of a pipe. Nobody writes to it; its
other end closes when the parent ends, however that happens. The guard adopts processes whose parent
is gone (a subreaper), so that no descendant escapes it, whatever process group it has made.

A script of its own, which imports nothing but the standard library: it starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_GRACE = 3.0  # seconds in which compilers may remove their temporary files


def main(lifeline: int, command: list[str]) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)  # a fork may keep the pipe open
    os.set_inheritable(lifeline, False)
    wakeup = _wakeup()
    try:
        # Handlers do not survive exec, but Python's own ignoring of SIGPIPE would.
        ignored = (signal.SIGPIPE, signal.SIGXFSZ)
        child = os.posix_spawnp(command[0], command, os.environ, setsigdef=ignored)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    code = None
    while code is None:
        ready, _, _ = select.select([lifeline, wakeup], [], [])
        if lifeline in ready:
            break
        if signal.SIGTERM in os.read(wakeup, 64):
            break
        code = _reap().get(child)
    _end_all()
    return -signal.SIGKILL if code is None else code


def _wakeup() -> int:
    """A file descriptor that tells of signals."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(writing)
    # Ctrl-C and hanging up go to the whole terminal: what they mean, the parent decides.
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    return reading


def _reap() -> dict[int, int]:
    """Exit codes of the children that have ended, by process."""
    ended = {}
    with contextlib.suppress(ChildProcessError):
        while (result := os.waitpid(-1, os.WNOHANG))[0]:
            ended[result[0]] = os.waitstatus_to_exitcode(result[1])
    return ended


def _end_all() -> None:
    """End every descendant: politely, and after a moment for good."""
    politely = time.monotonic() + _GRACE
    asked: set[int] = set()
    while (processes := _descendants()) and time.monotonic() < politely:
        for process in set(processes) - asked:
            _send(process, signal.SIGTERM)
        asked.update(processes)
        time.sleep(0.02)
        _reap()
    while True:
        for process in _descendants():
            _send(process, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)  # the children of one that ended become the guard's
        except ChildProcessError:
            return


def _send(process: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(process, number)


def _descendants() -> list[int]:
    """Processes below this one that have not ended."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):  # it has just ended
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(entry.name))
    found: list[int] = []
    below = children.get(os.getpid(), [])
    while below:
        found += below
        below = [child for process in below for child in children.get(process, [])]
    return found


def _end_alike(code: int) -> None:
    """End as the command did, also by its signal."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    _end_alike(main(int(sys.argv[1]), sys.argv[2:]))
