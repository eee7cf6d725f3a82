"""Runs the build process, collects its log and says how it ended."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from pydantic import ValidationError

from rainfusion_trt.engine.messages import BuildRequest, Built, Event, Failed, LogLine, parse_event
from rainfusion_trt.errors import EngineBuildError
from rainfusion_trt.processes.run import guarded

_LAST_WORDS = 12  # lines of log that an error message carries
_log = logging.getLogger(__name__)
# `-m` and `-c` let Python import from the working directory, where anything may lie. `-P` does not,
# but Python 3.10 has no such option. What is imported before the path is mended is built in.
_START = (
    "import sys; sys.path[:] = [path for path in sys.path if path]; "
    "import runpy; runpy.run_module('rainfusion_trt.engine.worker', run_name='__main__')"
)
COMMAND = (sys.executable, "-c", _START)


def run_worker(
    request: BuildRequest,
    on_event: Callable[[Event], None] = lambda event: None,
    command: tuple[str, ...] = COMMAND,
    keep: Sequence[int] = (),
) -> Built:
    """Build in a child process, which ends with this one.

    Parameters
    ----------
    request : BuildRequest
        The build to run.
    on_event : callable
        Called with every event, for a progress display.
    command : tuple of str
        The worker's command line.
    keep : sequence of int
        File descriptors that it inherits, of locks that last as long as it does.

    Raises
    ------
    EngineBuildError
        The build failed or its process died; the message carries TensorRT's last words.
    """
    with tempfile.TemporaryFile() as stderr:
        with guarded(
            command,
            keep=keep,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
        ) as process:
            built, failure, log = _converse(process, request, on_event)
            code = process.wait()
        if built is not None and code == 0:
            return built
        words = "\n".join(f"  {line}" for line in log[-_LAST_WORDS:])
        if failure is None:
            failure = f"the build process {_ending(code)}"
            words = "\n".join(filter(None, (words, _tail(stderr))))
        raise EngineBuildError(f"{failure}\n{words}".rstrip())


def _environment() -> dict[str, str]:
    """The child finds this package even if the parent has it from a changed ``sys.path``."""
    package_root = str(Path(__file__).parents[2])
    # An empty entry, as in ":/somewhere", would be the working directory.
    paths = (package_root, *os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def _converse(
    process: subprocess.Popen[bytes], request: BuildRequest, on_event: Callable[[Event], None]
) -> tuple[Built | None, str | None, list[str]]:
    """Send the request and read events until the end: result, failure and log lines."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request.model_dump_json().encode())
        process.stdin.close()
    except BrokenPipeError:
        _log.debug("the build process ended before it read its request")
    built, failure, lines = None, None, []
    for line in process.stdout:
        try:
            event = parse_event(line)
        except ValidationError:
            lines.append(line.decode(errors="replace").rstrip())
            continue
        on_event(event)
        if isinstance(event, LogLine):
            lines.append(event.text)
            if not event.failure:
                _log.info("%s", event.text)
        elif isinstance(event, Failed):
            failure = event.text
        elif isinstance(event, Built):
            built = event
    return built, failure, lines


def _ending(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"


def _tail(stderr: IO[bytes]) -> str:
    stderr.seek(0)
    lines = stderr.read().decode(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-_LAST_WORDS:])
