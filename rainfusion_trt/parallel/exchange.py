"""``Exchange``: the communicator by which an engine exchanges tokens, and a watch over it.

An exchange that waits for a GPU that is gone waits on the device, for ever, and the host then waits
for the device. So a thread looks on. Where another process has failed, or NCCL says so, or what was
enqueued does not end in time, it aborts the communicator: the device goes on, and the next look of
the call's own thread raises the error. Where a call of NCCL itself does not come back, nothing can
be raised any more, and the process ends with the error.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from rainfusion_trt.errors import InvalidInputError, ParallelError
from rainfusion_trt.operator.native import NativeLibrary
from rainfusion_trt.operator.native_parallel import ParallelCalls, Share
from rainfusion_trt.parallel.launch import end_process
from rainfusion_trt.parallel.team import Team, leave_out_multicast

_log = logging.getLogger(__name__)
_LOOK = 0.5  # seconds between looks
_FIRST = 10  # times as long for the first call of a kind, in which kernels are compiled
_ENDING = 15.0  # seconds for NCCL to end a communicator
_DIMENSION = "ulysses"


class _Enqueued(NamedTuple):
    """Work with exchanges: when it was enqueued, an event behind it, how long it may take."""

    since: float
    event: Any
    limit: float


class Exchange:
    """This process's part in the exchanges of an engine.

    All processes of a team have to make one at the same point.

    Parameters
    ----------
    team : Team
        The processes; those that share `ulysses` make a communicator each.
    library : NativeLibrary
        The plugin library, in which the engine's layers find it.

    Raises
    ------
    InvalidInputError
        This process has one already.
    ParallelError
        NCCL is missing or cannot connect the GPUs, or another process failed.
    """

    _alive: ClassVar[Exchange | None] = None  # the library knows one communicator a device

    @classmethod
    def refuse_second(cls) -> None:
        """Raise InvalidInputError where this process has one that is not closed."""
        if cls._alive is not None:
            raise InvalidInputError(
                "this process has a Pipeline of engines that share their tokens, and GPUs have one "
                "communicator for that: close() it first, or use ulysses=1 or backend='torch' here"
            )

    def __init__(self, team: Team, library: NativeLibrary) -> None:
        self.refuse_second()
        self.team = team
        self.device = team.device
        self._calls = ParallelCalls(library)
        self._index = team.device.index or 0
        group = team.mesh[_DIMENSION]
        self.share = Share(group.size(), group.get_local_rank())
        self._failure: str | None = None
        self._pending: deque[_Enqueued] = deque()
        self._since: tuple[float, float] | None = None  # a call is being enqueued; its limit
        self._known: set[Hashable] = set()  # kinds of calls that were enqueued
        self._lock = threading.Lock()
        self._stop = threading.Event()
        leave_out_multicast()
        team.meet()
        nccl = nccl_path()
        try:
            made = team.agree_in(_DIMENSION, lambda: self._calls.new_id(nccl))
            self._open(made, nccl)
        except ParallelError as error:  # which may be of this process alone
            team.tell(str(error))
            raise
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        Exchange._alive = self

    @contextlib.contextmanager
    def call(self, kind: Hashable = None) -> Iterator[None]:
        """A context in which work with exchanges is enqueued.

        Parameters
        ----------
        kind
            Engine and shapes. The first call of a kind may take longer.

        Raises
        ------
        ParallelError
            An exchange has failed, now or before.
        """
        self.check()
        limit = self.team.config.timeout * (1 if kind in self._known else _FIRST)
        with self._lock:
            self._since = time.monotonic(), limit
        try:
            yield
            event = self._event()
        except Exception as error:
            if not isinstance(error, InvalidInputError):  # which comes before anything is enqueued
                self.team.enqueued = None
            self.check(error)
            raise
        else:
            if self.team.enqueued is not None:
                self.team.enqueued += 1
            with self._lock:
                self._pending.append(_Enqueued(time.monotonic(), event, limit))
            self._known.add(kind)
        finally:
            with self._lock:
                self._since = None
        self.check()

    def check(self, cause: BaseException | None = None) -> None:
        """Raise ParallelError if an exchange has failed."""
        if self._failure is not None:
            raise ParallelError(self._failure) from cause

    def finish(self) -> None:
        """Wait for all that was enqueued, and raise ParallelError if it came to nothing."""
        self._synchronize()
        self.check()

    def close(self) -> None:
        """End the communicator, after the engines that exchange by it."""
        try:
            if self._failure is None:
                self._synchronize()  # while the thread looks on
        finally:
            Exchange._alive = None
            self._stop.set()
            # NCCL may wait for another process of this machine that is gone: not for ever.
            ending = threading.Thread(target=self._end, daemon=True)
            ending.start()
            ending.join(_ENDING)
            if ending.is_alive():
                _log.warning("NCCL did not end its communicator within %g seconds", _ENDING)

    def _end(self) -> None:
        self._thread.join()
        self._enter_device()
        try:
            self._calls.close(self._index, abort=self._failure is not None)
            if self._failure is not None:
                self._calls.close(self._index)  # forget it
        except ParallelError as error:  # the call has ended, well or with an error of its own
            _log.warning("the communicator of this process did not end as it should: %s", error)

    def _open(self, made: bytes, nccl: str | None) -> None:
        """Connect the GPUs; NCCL waits for all of them, so that it has to be in a thread."""
        errors: list[BaseException] = []

        def connect() -> None:
            try:
                self._calls.open(self._index, made, self.share, nccl)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        limit = self.team.config.timeout
        end = time.monotonic() + limit
        while thread.is_alive():
            thread.join(_LOOK)
            self.team.look()
            if thread.is_alive() and time.monotonic() > end:
                raise ParallelError(
                    f"the GPUs of this run were not connected by NCCL within {limit:g} seconds: "
                    "see the output of each process, or raise timeout="
                )
        if errors:
            raise errors[0]

    def _watch(self) -> None:
        self._enter_device()
        while not self._stop.wait(_LOOK) and self._failure is None:
            failure = self._look()
            if failure is None:
                continue
            self._failure = failure
            self.team.tell(failure)
            try:
                self._calls.close(self._index, abort=True)
            except ParallelError:  # the thread of the call is inside NCCL, and stays there
                end_process(failure)

    def _look(self) -> str | None:
        """What has failed; None where there is nothing to wait for, or it takes its time."""
        try:
            waiting = self._waiting()
            if waiting is None:
                return None
            self._calls.check(self._index)
            self.team.look()
        except (ParallelError, RuntimeError) as error:  # RuntimeError: CUDA's, of an event
            return str(error)
        since, limit = waiting
        if time.monotonic() - since > limit:
            return (
                f"an exchange between the GPUs of this run did not end within {limit:g} seconds: a "
                "process is lost, or its GPU is slower; see its own output, or raise timeout="
            )
        return None

    def _waiting(self) -> tuple[float, float] | None:
        """When what is under way began, or what was before it ended, and how long it may take."""
        with self._lock:
            while self._pending and self._pending[0].event.query():
                self._pending.popleft()
                if self._pending:  # it may have waited for its turn
                    self._pending[0] = self._pending[0]._replace(since=time.monotonic())
            found = [(work.since, work.limit) for work in list(self._pending)[:1]]
            found += [] if self._since is None else [self._since]
        if not found:
            return None
        return max(since for since, _ in found), max(limit for _, limit in found)

    def _enter_device(self) -> None:
        """CUDA's device is of each thread; on the first GPU a context would take memory there."""
        torch.cuda.set_device(self.device)

    def _event(self) -> Any:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def nccl_path() -> str | None:
    """libnccl.so.2 of the wheel beside PyTorch, for a process that has not loaded it already."""
    try:
        found = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        return None
    places = found.submodule_search_locations if found is not None else None
    for place in places or ():
        library = Path(place) / "lib" / "libnccl.so.2"
        if library.is_file():
            return str(library)
    return None
