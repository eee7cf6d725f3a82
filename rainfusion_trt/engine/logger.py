"""TensorRT's log as events, and as lines for error messages."""

from __future__ import annotations

import functools
import logging
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rainfusion_trt.engine.messages import LogLine
from rainfusion_trt.operator.settings import LATER_ATTRIBUTES

_log = logging.getLogger(__name__)
NO_GPU = re.compile(
    r"\[checkMacros\S* Error Code 1: Cuda Runtime \(.*?cudaError (35|100): [^)]*\)+"
)
"""TensorRT's remark that there is no driver or no device, where it needs neither."""

LEFT_OUT = re.compile(
    rf"Attribute ({'|'.join(('scale', 'parallel', *LATER_ATTRIBUTES))}) not found in plugin node"
)
"""TensorRT's remark, to which it adds that the engine may fail to build, on an attribute that a
node of ours may leave out: the plugin has its default."""


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


class HeldLog:
    """A build's log on its way to `emit`, without what is no matter, and held where it may be none.

    Parameters
    ----------
    emit
        Gets the lines.
    without_gpu
        The build needs no GPU, so that nobody is told that there is none.
    """

    def __init__(self, emit: Callable[[LogLine], None], *, without_gpu: bool) -> None:
        self._emit = emit
        self._without_gpu = without_gpu
        self._lines: list[LogLine] | None = None

    def __call__(self, line: LogLine) -> None:
        if LEFT_OUT.search(line.text):
            return
        if self._without_gpu:
            text = NO_GPU.sub("", line.text).strip()
            if not text:
                return
            line = line.model_copy(update={"text": text})
        if self._lines is None:
            self._emit(line)
        else:
            self._lines.append(line)

    @contextmanager
    def held(self) -> Iterator[list[LogLine]]:
        """Lines inside are kept; those that are still in the list at the end go out then."""
        lines = self._lines = []
        try:
            yield lines
        finally:
            self._lines = None
            for line in lines:
                self._emit(line)


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
