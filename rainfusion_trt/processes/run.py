"""Starts commands that end with this process, their own children included."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

_GUARD = Path(__file__).with_name("guard.py")


@contextlib.contextmanager
def guarded(
    command: Sequence[str], *, keep: Sequence[int] = (), **options: Any
) -> Iterator[subprocess.Popen]:
    """Run a command; it and all that it started end with the block, or with this process.

    That holds however this process ends, SIGKILL included. See `rainfusion_trt.processes.guard`.

    Parameters
    ----------
    command : sequence of str
        Program and arguments.
    keep : sequence of int
        File descriptors that the command inherits, such as that of a lock, which is then held until
        its last process is gone.
    **options
        Of `subprocess.Popen`.

    Yields
    ------
    subprocess.Popen
        Ends as the command does: with its exit code, or by its signal.
    """
    lifeline, end = os.pipe()
    guard = (sys.executable, "-I", "-S", str(_GUARD), str(lifeline))
    try:
        process = subprocess.Popen((*guard, *command), pass_fds=(lifeline, *keep), **options)
    except BaseException:
        os.close(end)
        raise
    finally:
        os.close(lifeline)
    with process:
        try:
            yield process
        finally:
            os.close(end)
