"""Processes with gloo on the CPU: one group for many checks, since each costs seconds to start."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# What PyTorch's C++ says of processes that leave; read where torch is imported, by the server.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
_LIMIT = 240.0  # seconds until a group that does not answer is ended


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def in_processes(
    work: Callable[..., Any],
    world: int,
    *arguments: Any,
    group: bool = True,
    lost: Sequence[int] = (),
) -> list[Any]:
    """What ``work(rank, *arguments)`` gives in each process; a module-level function.

    The processes are forks of a server that has imported what they need, which takes seconds.

    Parameters
    ----------
    group
        Make the process group; else there is only what a launcher sets.
    lost
        Processes that give no answer.

    Raises
    ------
    AssertionError
        One of them failed, with its traceback.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.helpers.loaded"])
    port = free_port()
    ends = []
    workers = []
    answered = context.Event()
    for rank in range(world):
        reading, writing = context.Pipe(duplex=False)
        worker = context.Process(
            target=_run,
            args=(rank, world, port, group, writing, answered, work, arguments),
            daemon=True,
        )
        worker.start()
        writing.close()
        ends.append(reading)
        workers.append(worker)
    answers: list[Any] = []
    try:
        for rank, end in enumerate(ends):
            if rank in lost:
                continue
            assert end.poll(_LIMIT), f"rank {rank} does not answer"
            answers.append(end.recv())
    finally:
        answered.set()
        for rank, worker in enumerate(workers):
            worker.join(0 if rank in lost else 10)
            if worker.is_alive():
                worker.kill()
    failures = [text for failed, text in answers if failed]
    assert not failures, "\n".join(failures)
    return [answer for _, answer in answers]


@contextlib.contextmanager
def one_of(world: int, rank: int = 0) -> Iterator[None]:
    """This process as one of so many, of which there is no other: nothing is sent."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _run(
    rank: int,
    world: int,
    port: int,
    group: bool,
    end: Any,
    answered: Any,
    work: Any,
    arguments: Any,
) -> None:
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    if group:
        dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    try:
        end.send((False, work(rank, *arguments)))
    except BaseException:
        end.send((True, f"rank {rank}: {traceback.format_exc()}"))
    finally:
        if rank == 0:
            answered.wait(_LIMIT)  # the others may be about to read what it keeps for all
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):
            dist.destroy_process_group()
