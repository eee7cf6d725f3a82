"""``Board``: the table of bytes by which the processes of a run tell each other what they agree on.

It is the store of `torch.distributed`, which lives in one of the processes and keeps whatever it is
given. A run agrees on something in every step of every clip, so that each process takes away what
it has put there once nobody can want it any more: when all have met again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rainfusion_trt.errors import ParallelError

_FAILED = "rainfusion/failed"
_PATIENCE = 3600.0  # seconds for what takes its time on one process: loading, writing a video
_LOOK = 1.0  # seconds between looks at whether another process has failed
_SHORTEST_PAUSE, _LONGEST_PAUSE = 2e-4, 0.02  # seconds between looks at what is awaited
_put: list[str] = []  # by this process since all met, through whichever board; no key comes twice


class Board:
    """A store, as one of the processes sees it.

    Parameters
    ----------
    store
        Of `torch.distributed`.
    rank, world : int
        Which process this is, of how many.
    """

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self._store = store
        self.rank = rank
        self.world = world

    def put(self, name: str, value: bytes) -> None:
        """Put something there, until all have met."""
        key = f"rainfusion/{name}"
        self._store.set(key, value)
        _put.append(key)

    def read(self, names: Sequence[str], limit: float) -> list[bytes]:
        """What processes put there under these names.

        Raises
        ------
        ParallelError
            One has failed, or does not answer for `limit` seconds.
        """
        keys = [f"rainfusion/{name}" for name in names]
        self._wait(keys, limit)
        return [self._store.get(key) for key in keys]

    def meet(self, name: str) -> None:
        """Wait until all processes are here, however long one of them computes before.

        Raises
        ------
        ParallelError
            Another one has failed.
        """
        before = list(_put)
        self.put(f"{name}/{self.rank}", b"")
        self._wait([f"rainfusion/{name}/{other}" for other in range(self.world)], _PATIENCE)
        for key in before:  # all have come here, and so have read it, or never will
            self._store.delete_key(key)
        del _put[: len(before)]

    def fail(self, said: str) -> None:
        """Say for good that this process failed, unless one has said so already."""
        if self.failure() is None:
            self._store.set(_FAILED, f"process {self.rank} failed: {said}")

    def failure(self) -> str | None:
        """What a process has said of its failure."""
        return self._store.get(_FAILED).decode() if self._store.check([_FAILED]) else None

    def _wait(self, keys: list[str], limit: float) -> None:
        """Wait for keys, and look whether a process has failed meanwhile.

        It looks again and again: a wait of the store that ends in vain writes two lines to stderr.
        """
        begun = looked = time.monotonic()
        pause = _SHORTEST_PAUSE
        while not self._store.check(keys):
            now = time.monotonic()
            if now - looked > _LOOK:
                looked = now
                if (failed := self.failure()) is not None:
                    raise ParallelError(failed)
            if now - begun > limit:
                raise ParallelError(
                    f"a process of this run did not answer for {limit:g} seconds: see its own "
                    "output, or raise timeout="
                )
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
