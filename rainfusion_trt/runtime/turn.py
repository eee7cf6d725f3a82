"""One call at a time: a diffusers pipeline and an engine hold the state of one generation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from rainfusion_trt.errors import InvalidInputError


class Turn:
    """Whose turn it is to use a `Pipeline`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def taken(self, *, wait: bool) -> Iterator[None]:
        """The turn, for as long as the context lasts.

        Parameters
        ----------
        wait
            Queue behind the thread that has it.

        Raises
        ------
        InvalidInputError
            Another thread has it and `wait` is False, or this thread has it already.
        """
        me = threading.get_ident()
        if self._owner == me:
            raise InvalidInputError(
                "this Pipeline is making a video and cannot be called or closed by its own "
                "callback: wait until the call has returned"
            )
        if not self._lock.acquire(blocking=wait):
            raise InvalidInputError(
                "this Pipeline is making a video in another thread, and it makes one at a time: "
                "construct it with wait=True to queue, or use one Pipeline per thread"
            )
        self._owner = me
        try:
            yield
        finally:
            self._owner = None
            self._lock.release()
