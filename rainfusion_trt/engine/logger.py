"""TensorRT's log as events, and as lines for error messages."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from rainfusion_trt.engine.messages import LogLine

_log = logging.getLogger(__name__)


class ProcessLogger:
    """TensorRT's logger for this process: into Python's logging, with the last lines kept.

    TensorRT keeps the first logger it is given for all that follow, so there is one per module.
    """

    def __init__(self, trt: Any) -> None:
        self._lines: deque[str] = deque(maxlen=8)
        self.trt_logger = make_logger(trt, self._take)

    def clear(self) -> None:
        """Forget the lines of earlier work."""
        self._lines.clear()

    def explain(self, text: str) -> str:
        """`text` with TensorRT's last words."""
        return "\n  ".join((text, *self._lines))

    def _take(self, line: LogLine) -> None:
        self._lines.append(line.text)
        _log.log(logging.ERROR if line.failure else logging.INFO, "%s", line.text)


@functools.cache
def process_logger(trt: Any) -> ProcessLogger:
    """The process's logger for a TensorRT module."""
    return ProcessLogger(trt)


def make_logger(trt: Any, emit: Callable[[LogLine], None]) -> Any:
    """A TensorRT logger that emits everything from warnings up."""
    reported = ("internal_error", "error", "warning")

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, text: str) -> None:
            name = severity.name.lower()
            if name in reported:
                emit(LogLine(severity=name, text=text))

    return Logger()
