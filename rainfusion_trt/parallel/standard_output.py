"""Standard output is for what commands say, also where C++ would write to it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator

_OUTPUT, _ERRORS = 1, 2  # file descriptors, which C++ writes to; sys.stdout may be another


@contextlib.contextmanager
def output_to_errors() -> Iterator[None]:
    """A context in which what this process writes to standard output goes to standard error.

    For making process groups: Gloo of PyTorch 2.9 prints there whom it is connected to, and scripts
    read the path of the video from there.
    """
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # one of the two is closed: nothing to keep apart
            kept = os.dup(_OUTPUT)
            stack.callback(os.close, kept)
            os.dup2(_ERRORS, _OUTPUT)
            stack.callback(os.dup2, kept, _OUTPUT)
        yield
