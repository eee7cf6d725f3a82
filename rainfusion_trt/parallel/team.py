"""``Team``: the processes that make a clip together, and what they tell each other.

What is computed goes through process groups, whose operations time out. What is agreed on goes
through the store that every process group has, a table of bytes: there each process also says why
it fails, so that the others end with the cause and not with its consequence.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import pickle
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rainfusion_trt.errors import (
    GenerationCancelled,
    InvalidInputError,
    ParallelError,
    RainFusionError,
)
from rainfusion_trt.parallel.config import ParallelConfig

T = TypeVar("T")
_FAILED = "rainfusion/failed"
_PATIENCE = 3600.0  # seconds for what takes its time on one process: loading, writing a video
_LOOK = 1.0  # seconds between looks at whether another process has failed
_count = itertools.count()  # of what processes met for, the same in all of them
_MARKS = ("gloo/", "gloo::", "ProcessGroup", "NCCL", "c10d")  # of errors of process groups


class Team:
    """This process among those of a run.

    Attributes
    ----------
    config : ParallelConfig
        How they share the work.
    rank, world : int
        Which one this is, of how many.
    device : torch.device
        Where this process computes.
    mesh : DeviceMesh
        With the dimensions ``guidance``, ``ring`` and ``ulysses``.
    """

    ended_by_all = False  # whether all processes agreed to end the call that runs
    _broken = False  # whether a process of this run has failed

    def __init__(self, config: ParallelConfig, device: torch.device, store: Any) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        self.config = config
        self.device = device
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._store = store
        with _said_shortly("meet"):
            _meet(store, f"mesh/{next(_count)}", self.rank, self.world)
            self.mesh = init_device_mesh(
                device.type,
                (config.guidance, 1, config.ulysses),
                mesh_dim_names=("guidance", "ring", "ulysses"),
            )

    @classmethod
    def join(cls, config: ParallelConfig, device: str | torch.device | None) -> Team:
        """Become one of the processes that torchrun or ``rainfusion-trt run --gpus`` started.

        A process group that there is already is used.

        Raises
        ------
        InvalidInputError
            There are no such processes, or another number than `config` needs.
        """
        asked = config.processes
        has_group = dist.is_available() and dist.is_initialized()
        world = dist.get_world_size() if has_group else int(os.environ.get("WORLD_SIZE", "0"))
        if not world or not (has_group or "RANK" in os.environ):
            raise InvalidInputError(
                f"parallel= needs {asked} processes: start them with `torchrun "
                f"--nproc-per-node {asked}`, or use `rainfusion-trt run --gpus {asked}`"
            )
        if world != asked:
            raise InvalidInputError(
                f"ulysses={config.ulysses} times guidance={config.guidance} are {asked} processes, "
                f"and {world} were started: start {asked}, or change the config"
            )
        place = _place(device)
        if has_group:
            return cls(config, place, dist.distributed_c10d._get_default_store())
        leave_out_multicast()
        patience = timedelta(seconds=_PATIENCE)
        with _said_shortly("meet"):
            store, rank, world = next(rendezvous("env://", timeout=patience))
            _meet(store, "start", rank, world)
            dist.init_process_group(
                "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl",
                store=store,
                rank=rank,
                world_size=world,
                timeout=timedelta(seconds=config.timeout),
            )
        atexit.register(cls._leave)  # and not before: another Pipeline may want it
        return cls(config, place, store)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, logs, shows and calls back."""
        return self.rank == 0

    def meet(self) -> None:
        """Wait until all processes are here, however long one of them computes before.

        Raises
        ------
        ParallelError
            Another one has failed.
        """
        with self.together():
            _meet(self._store, f"meet/{next(_count)}", self.rank, self.world)

    def topic(self) -> str:
        """A name that all processes have for what they agree on next, and for nothing else."""
        return f"topic/{next(_count)}"

    def agree(self, make: Callable[[], T], about: str | None = None) -> T:
        """What `make` gives in the first process, in all of them; its error is that of all.

        Parameters
        ----------
        make
            Called in the first process alone.
        about
            What it is about, where not all processes ask for each answer; else all of them have to
            call this equally often.

        Raises
        ------
        ParallelError
            `make` failed in the first process, in the others.
        """
        return self._agreed(str(next(_count) if about is None else about), 0, make)

    def _agreed(self, name: str, first: int, make: Callable[[], T]) -> T:
        key = f"rainfusion/agreed/{name}"
        if self.rank != first:
            with self.together():
                _wait(self._store, [key], self.config.timeout)
                return pickle.loads(self._store.get(key))  # noqa: S301  # from our own process
        value = make()
        self._store.set(key, pickle.dumps(value))
        return value

    def agree_in(self, dimension: str, make: Callable[[], T]) -> T:
        """What `make` gives in the first process of a mesh's dimension, in all of that group.

        Parameters
        ----------
        dimension
            Of `mesh`. All processes of the team have to call it.
        make
            Gives what can be pickled.

        Raises
        ------
        ParallelError
            `make` failed in the first process, in the others.
        """
        first, *_ = dist.get_process_group_ranks(self.mesh[dimension].get_group())
        return self._agreed(f"{dimension}/{next(_count)}/{first}", first, make)

    def look(self) -> None:
        """Raise ParallelError if another process has said that it failed, or cannot be asked."""
        try:
            failed = self._store.check([_FAILED]) and self._store.get(_FAILED).decode()
        except RuntimeError as error:
            raise ParallelError(
                f"process 0 of this run is lost ({_shortly(error)}): see its own output"
            ) from error
        if failed:
            raise ParallelError(failed)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context whose errors the other processes learn of, and theirs this one.

        Raises
        ------
        ParallelError
            Another process failed, is lost or does not answer.
        """
        try:
            yield
        except ParallelError:
            Team._broken = True
            raise
        except BaseException as error:
            if self.ended_by_all and isinstance(error, GenerationCancelled):
                raise  # in every process, so that the next call finds them in step
            Team._broken = True
            if not _is_of_groups(error):
                self._tell(error)
                raise
            cause = self._cause()
            if cause is None:
                cause = (
                    f"a process of this run is lost or did not answer for {self.config.timeout:g} "
                    f"seconds ({_shortly(error)}): see its own output, or raise timeout="
                )
                self._tell(error)
            raise ParallelError(cause) from error

    @classmethod
    def _leave(cls) -> None:
        """Leave the process group that was made here; a broken one may wait for ever."""
        if dist.is_initialized() and not cls._broken:
            dist.destroy_process_group()

    def tell(self, said: str) -> None:
        """Say to the others that this process failed, unless one has said so already."""
        with contextlib.suppress(RuntimeError):
            if not self._store.check([_FAILED]):
                self._store.set(_FAILED, f"process {self.rank} failed: {said}")

    def _tell(self, error: BaseException) -> None:
        self.tell(_shortly(error) or type(error).__name__)

    def _cause(self) -> str | None:
        """What another process has said of its failure; it may be just about to."""
        end = time.monotonic() + 2 * _LOOK
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end:
                if self._store.check([_FAILED]):
                    return self._store.get(_FAILED).decode()
                time.sleep(0.05)
        return None


def leave_out_multicast() -> None:
    """Switch NCCL's multicast over NVLink off, unless the user has said; before it is used.

    It takes memory that a container may not give, and nothing here needs it.
    """
    os.environ.setdefault("NCCL_NVLS_ENABLE", "0")


def _place(device: str | torch.device | None) -> torch.device:
    """This process's GPU, or the CPU where there is none or it was asked for."""
    asked = None if device is None else torch.device(device)
    index: int | None = None if asked is None else asked.index  # though torch's types say int
    if index is not None:
        raise InvalidInputError(
            f"device={device} with parallel=: each process has a GPU of its own; give cuda or cpu"
        )
    if asked is not None and asked.type == "cpu":
        return asked
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count and asked is None:
        return torch.device("cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if local >= count:
        raise InvalidInputError(
            f"process {local} of this machine has no GPU: torch finds {count}; use fewer processes"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _meet(store: Any, name: str, rank: int, world: int) -> None:
    store.set(f"rainfusion/{name}/{rank}", b"")
    _wait(store, [f"rainfusion/{name}/{other}" for other in range(world)], _PATIENCE)


def _wait(store: Any, keys: list[str], limit: float) -> None:
    """Wait for keys of the store, and look whether a process has failed meanwhile."""
    end = time.monotonic() + limit
    while True:
        try:
            store.wait(keys, timedelta(seconds=_LOOK))
            return
        except dist.DistStoreError:
            if store.check([_FAILED]):
                raise ParallelError(store.get(_FAILED).decode()) from None
            if time.monotonic() > end:
                raise ParallelError(
                    f"a process of this run did not answer for {limit:g} seconds: see its own "
                    "output, or raise timeout="
                ) from None


@contextlib.contextmanager
def _said_shortly(what: str) -> Iterator[None]:
    """A context whose errors of the network are ours."""
    try:
        yield
    except RainFusionError:
        raise
    except RuntimeError as error:
        raise ParallelError(
            f"the processes of this run cannot {what} ({_shortly(error)}): check MASTER_ADDR and "
            "MASTER_PORT, or start it again"
        ) from error


def _is_of_groups(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)
    )


def _shortly(error: BaseException) -> str:
    """The first line of an error, not too much of it."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""
