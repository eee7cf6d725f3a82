"""Starts the processes of ``rainfusion-trt run --gpus N`` and ends with them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from rainfusion_trt.console import explain
from rainfusion_trt.errors import ParallelError
from rainfusion_trt.processes.run import guarded

_ERRORS = "RAINFUSION_TRT_PROCESS_ERRORS"  # folder in which processes say why they fail
_GRACE = 3.0  # seconds in which the others may say why they fail too
_MOST = 4000  # characters of the output of a process that says nothing else


def is_started() -> bool:
    """Whether this process is one that a launcher, ours or torchrun, has started."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first() -> bool:
    """Whether this process is the one that writes and shows, as one that is alone."""
    return os.environ.get("RANK", "0") == "0"


def launch(command: Sequence[str], processes: int) -> None:
    """Run a command in several processes at once, of which the first one is seen.

    Parameters
    ----------
    command
        Calls `reporting` around its work.
    processes
        How many.

    Raises
    ------
    ParallelError
        One of them failed: why. All have ended by then.
    """
    with tempfile.TemporaryDirectory(prefix="rainfusion-") as folder:
        failures = _run(command, processes, Path(folder))
    if failures:
        raise ParallelError(min(failures).text)


class _Failure(NamedTuple):
    """Why a process failed; what is a cause comes before what may be a consequence."""

    consequence: int
    rank: int
    text: str


def _run(command: Sequence[str], processes: int, folder: Path) -> list[_Failure]:
    port = _free_port()
    running: list[subprocess.Popen] = []
    with contextlib.ExitStack() as stack:
        for rank in range(processes):
            options: dict[str, Any] = {"env": _environment(rank, processes, port, folder)}
            if rank > 0:
                log = stack.enter_context((folder / f"{rank}.log").open("wb"))
                options.update(stdout=log, stderr=log)
            started = guarded(command, stdin=subprocess.DEVNULL, **options)
            running.append(stack.enter_context(started))
        _wait(running, for_all=False)
        if any(process.poll() for process in running):
            _wait(running, for_all=True, limit=_GRACE)
        codes = [process.poll() for process in running]
        for process in running:  # all at once, and not one after the other
            process.terminate()
    return [_failure(rank, code, folder) for rank, code in enumerate(codes) if code]


def _wait(running: list[subprocess.Popen], *, for_all: bool, limit: float | None = None) -> None:
    """Until all have ended; without `for_all` at most until one has failed."""
    end = None if limit is None else time.monotonic() + limit
    while any(process.poll() is None for process in running):
        if not for_all and any(process.poll() for process in running):
            return
        if end is not None and time.monotonic() > end:
            return
        time.sleep(0.05)


def _environment(rank: int, processes: int, port: int, folder: Path) -> dict[str, str]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    # What PyTorch's C++ says of a connection that a process has left is no error of its own.
    defaults = {"OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port}
    numbers |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), processes)
    place = {name: str(number) for name, number in numbers.items()}
    place |= {"MASTER_ADDR": "127.0.0.1", _ERRORS: str(folder)}
    return {**defaults, **os.environ, **place}


def _failure(rank: int, code: int, folder: Path) -> _Failure:
    said = folder / f"{rank}.json"
    if said.exists():
        note = json.loads(said.read_text())
        return _Failure(2 if note["consequence"] else 0, rank, note["text"])
    if code < 0:
        name = signal.Signals(-code).name
        return _Failure(1, rank, f"process {rank} of this run was killed by {name}")
    log = folder / f"{rank}.log"
    output = log.read_text(errors="replace")[-_MOST:] if log.exists() else ""
    return _Failure(1, rank, f"process {rank} of this run ended with status {code} {output}")


@contextlib.contextmanager
def reporting() -> Iterator[None]:
    """A context that tells our launcher of an error and ends the process; elsewhere nothing."""
    try:
        yield
    except Exception as error:
        if os.environ.get(_ERRORS) is None or type(error).__name__ in ("Exit", "Abort"):
            raise
        line = explain(error)
        text = line or "".join(traceback.format_exception(error))
        consequence = isinstance(error, ParallelError)
        end_process(text, consequence=consequence, status=1 if line is None else 2)


def end_process(text: str, *, consequence: bool = True, status: int = 2) -> NoReturn:
    """End this process, from any thread and at once, since a broken group may wait for ever.

    Parameters
    ----------
    text
        Why, for our launcher, or for standard error where there is none.
    consequence
        Whether another process may have the cause.
    status
        Of the process.
    """
    folder = os.environ.get(_ERRORS)
    if folder is None:
        print(f"Error: {text}", file=sys.stderr)
    else:
        target = Path(folder) / f"{os.environ['RANK']}.json"
        note = {"text": text, "consequence": consequence}
        target.with_suffix(".part").write_text(json.dumps(note))
        target.with_suffix(".part").rename(target)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
