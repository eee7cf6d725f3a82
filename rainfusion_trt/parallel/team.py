"""``Team``: the processes that make a clip together, and what they tell each other.

What is computed goes through process groups, whose operations time out. What is agreed on goes
through the store that every process group has (`board.Board`): there each process also says why it
fails, so that the others end with the cause and not with its consequence.

An error need not end a run. Where all processes have left a call after the same exchanges, nobody
waits for anybody: they are in step, as after a clip, and can make the next one. This is so of what
all refuse alike, of a cancellation, and of an error of the first process behind the last step.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from rainfusion_trt.errors import InvalidInputError, ParallelError
from rainfusion_trt.parallel.board import Board
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.ends import End, exchanges, in_step
from rainfusion_trt.parallel.group_errors import is_of_groups, said_shortly, shortly
from rainfusion_trt.parallel.standard_output import output_to_errors

T = TypeVar("T")
_PATIENCE = 3600.0  # seconds for processes that start
_SETTLE = 5.0  # seconds for others to come to the error that this process has
_TOLD = 2.0  # seconds for another process to say its failure, which this one has felt


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
    enqueued : int or None
        See `ends.End`; engines count them here.
    """

    enqueued: int | None = 0
    _broken = False  # whether a process of this run has failed
    _at_work = threading.Lock()  # all teams of a process are among the same processes
    _count = 0  # of what processes met for, in all teams; the same in all processes
    _meshes: ClassVar[dict[tuple[Any, ...], Any]] = {}  # each has process groups, which stay

    def __init__(self, config: ParallelConfig, device: torch.device, board: Board) -> None:
        self.config = config
        self.device = device
        self.rank, self.world = board.rank, board.world
        self._board = board
        with said_shortly("meet"):
            board.meet(f"mesh/{self._next()}")
            with output_to_errors():
                self.mesh = self._mesh()

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
        if not has_group:
            cls._begin(config, place)
        return cls(config, place, cls._board_of_group())

    @classmethod
    def _begin(cls, config: ParallelConfig, place: torch.device) -> None:
        """Make the process group of those that were started, and leave it at the end."""
        leave_out_multicast()
        patience = timedelta(seconds=_PATIENCE)
        with said_shortly("meet"):
            store, rank, world = next(rendezvous("env://", timeout=patience))
            Board(store, rank, world).meet("start")
            with output_to_errors():
                dist.init_process_group(
                    "gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl",
                    store=store,
                    rank=rank,
                    world_size=world,
                    timeout=timedelta(seconds=config.timeout),
                )
        # And not before: another Pipeline may want it.
        atexit.register(cls._leave, cls._board_of_group())

    @staticmethod
    def _board_of_group() -> Board:
        """The one board of all teams of this process.

        A group keeps its keys apart from others in the store that it was made with: who looks into
        that store itself does not see what was put into the group's.
        """
        store = dist.distributed_c10d._get_default_store()
        return Board(store, dist.get_rank(), dist.get_world_size())

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
        with self._hearing():
            self._board.meet(f"meet/{self._next()}")

    def topic(self) -> str:
        """A name that all processes have for what they agree on next, and for nothing else."""
        return f"topic/{self._next()}"

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
        return self._agreed(str(self._next() if about is None else about), 0, make)

    def _agreed(self, name: str, first: int, make: Callable[[], T]) -> T:
        if self.rank != first:
            with self._hearing():
                (said,) = self._board.read([f"agreed/{name}"], self.config.timeout)
                return pickle.loads(said)  # noqa: S301  # from our own process
        value = make()
        self._board.put(f"agreed/{name}", pickle.dumps(value))
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
        return self._agreed(f"{dimension}/{self._next()}/{first}", first, make)

    def look(self) -> None:
        """Raise ParallelError if another process has said that it failed, or cannot be asked."""
        try:
            failed = self._board.failure()
        except RuntimeError as error:
            raise ParallelError(
                f"process 0 of this run is lost ({shortly(error)}): see its own output"
            ) from error
        if failed is not None:
            raise ParallelError(failed)

    def tell(self, said: str) -> None:
        """Say to the others that this process failed, unless one has said so already."""
        with contextlib.suppress(RuntimeError):
            self._board.fail(said)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A context for what all processes do, whose errors they learn of from each other.

        After an error of its own in each of them, or in the first alone, they may be in step; see
        above. Else whatever they try next is the ParallelError of the one that failed.

        Raises
        ------
        ParallelError
            Another process failed, is lost or does not answer, now or before.
        InvalidInputError
            Another thread of this process is in such a context, or this one is.
        """
        if not Team._at_work.acquire(blocking=False):
            raise InvalidInputError(
                "a Pipeline with parallel= works in this process already, and its processes do one "
                "thing at a time, in the same order: wait until it is done"
            )
        try:
            with self._hearing():
                self.look()
            end = f"end/{self._next()}"
            try:
                with self._hearing():
                    yield
            except ParallelError:
                raise
            except Exception as error:
                if not self._in_step(end):
                    self._fail(error)
                raise
            except BaseException as error:  # such as an interruption, of this process alone
                self._fail(error)
                raise
            with contextlib.suppress(RuntimeError):  # the first process may have ended by now
                self._say_end(end, failed=False)
        finally:
            Team._at_work.release()

    @contextlib.contextmanager
    def _hearing(self) -> Iterator[None]:
        """A context in which what another process causes is a ParallelError."""
        try:
            yield
        except ParallelError as error:
            self._fail(error)
            raise
        except Exception as error:
            if not is_of_groups(error):
                raise
            cause = self._cause()
            if cause is None:
                cause = (
                    f"a process of this run is lost or did not answer for {self.config.timeout:g} "
                    f"seconds ({shortly(error)}): see its own output, or raise timeout="
                )
            self._fail(error)
            raise ParallelError(cause) from error

    def _in_step(self, end: str) -> bool:
        """Whether all have come to the end after the same exchanges, this one with an error."""
        names = [f"{end}/{rank}" for rank in range(self.world)]
        try:
            self._say_end(end, failed=True)
            texts = self._board.read(names, min(_SETTLE, self.config.timeout))
        except RuntimeError:  # they are elsewhere, one has failed, or the store is lost
            return False
        return in_step([pickle.loads(text) for text in texts])  # noqa: S301  # of our processes

    def _say_end(self, end: str, *, failed: bool) -> None:
        mine = End(failed, Team._count, self.enqueued, exchanges(self.mesh))
        self._board.put(f"{end}/{self.rank}", pickle.dumps(mine))

    def _fail(self, error: BaseException) -> None:
        """This process cannot go on with the others, nor they with it."""
        Team._broken = True
        self.tell(shortly(error) or type(error).__name__)

    def _mesh(self) -> Any:
        """One for all teams of a kind, as those of the service come and go."""
        from torch.distributed.device_mesh import init_device_mesh

        shape = (self.config.guidance, 1, self.config.ulysses)
        kind = (dist.group.WORLD, self.device.type, shape)
        if kind not in self._meshes:
            names = ("guidance", "ring", "ulysses")
            self._meshes[kind] = init_device_mesh(self.device.type, shape, mesh_dim_names=names)
        return self._meshes[kind]

    @classmethod
    def _next(cls) -> int:
        Team._count += 1
        return Team._count

    @classmethod
    def _leave(cls, board: Board) -> None:
        """Leave the process group that was made here; a broken one may wait for ever."""
        if not dist.is_initialized() or cls._broken:
            return
        with contextlib.suppress(RuntimeError):
            board.put(f"left/{board.rank}", b"")
            if board.rank == 0:  # which keeps the board, of which others may be about to read
                board.read([f"left/{rank}" for rank in range(board.world)], _SETTLE)
        dist.destroy_process_group()

    def _cause(self) -> str | None:
        """What another process has said of its failure; it may be just about to."""
        end = time.monotonic() + _TOLD
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < end:
                failed = self._board.failure()
                if failed is not None:
                    return failed
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
