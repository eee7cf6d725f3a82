"""What runs on several GPUs have in common: who shares a clip, and times of the slowest GPU."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.engine.measure import Row, milliseconds, release, spread
from benchmarks.engine.parallel import slowest

Run = Callable[[], Tensor]
CALLS = 3  # of a timing, as steps follow each other


class Way(NamedTuple):
    """One of the ways that are compared.

    Attributes
    ----------
    run
        Its name.
    gpus
        How many share a clip.
    sparsity
        Of attention.
    """

    run: str
    gpus: int
    sparsity: float

    def row(self, what: str) -> Row:
        return {"what": what, **self._asdict()}


def shares(world: int) -> list[int]:
    """How many of `world` GPUs share a clip: all their divisors but 1."""
    return [gpus for gpus in range(2, world + 1) if world % gpus == 0]


def mesh_of(gpus: int, device: str) -> Any:
    """Groups of `gpus` processes with a clip each, along the dimension ``ulysses``."""
    shape = (dist.get_world_size() // gpus, 1, gpus)
    return init_device_mesh(device, shape, mesh_dim_names=("clip", "ring", "ulysses"))


def time_in_turn(
    runs: Mapping[Way, Run], rounds: int, calls: int = CALLS
) -> dict[Way, list[float]]:
    """Milliseconds of each run on the slowest process, after one untimed call of each."""
    for run in runs.values():
        run()
    times: dict[Way, list[float]] = {way: [] for way in runs}
    for _ in range(rounds):
        for way, run in runs.items():
            dist.barrier()
            several = partial(_repeat, run, calls)
            times[way].append(slowest(torch.tensor(milliseconds(several) / calls)))
    return times


def time_rows(what: str, times: Mapping[Way, list[float]]) -> list[Row]:
    return [{**way.row(what), **spread(values)} for way, values in times.items()]


def gain_row(way: Way, one: list[float], several: list[float]) -> Row:
    """How much faster `several` are, and what share of all that so many GPUs could gain."""
    ratio = statistics.median(one) / statistics.median(several)
    efficiency = round(ratio / way.gpus, 3)
    return {**way.row("speed-up"), "times": round(ratio, 3), "efficiency": efficiency}


def peak_gib(run: Run) -> float | None:
    """What a run allocates at most beyond what is there before it; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    release()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


def _repeat(run: Run, calls: int) -> None:
    for _ in range(calls):
        run()
