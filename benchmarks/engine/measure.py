"""Measure errors, times and device memory, as rows of a result file."""

from __future__ import annotations

import gc
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Row = dict[str, Any]
Forward = Callable[[], Tensor]
Runs = Mapping[tuple[str, float], Forward]  # by name and sparsity

# Engine against eager: both round every activation to bfloat16, in other places.
TOLERANCE = 2e-2


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """Options of every measurement that compiles.

    Attributes
    ----------
    rounds
        Timings of each run.
    compiler
        Backend of torch.compile.
    seconds
        When to give up on it, in the first forward of one run.
    """

    rounds: int = 5
    compiler: str = "inductor"
    seconds: float = 180.0


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def release() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def used_gib() -> float:
    """Device memory in use by anybody, in GiB; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0.0
    free, total = torch.cuda.mem_get_info()
    return (total - free) / 2**30


def memory_rows(run: str, before: float) -> list[Row]:
    """Device memory that `run` added, its first call included."""
    if not torch.cuda.is_available():
        return []
    return [{"what": "device memory", "run": run, "gib": round(used_gib() - before, 2)}]


def relative_error(out: Tensor, wanted: Tensor) -> float:
    """Frobenius norm of the difference over that of `wanted`; NaN if `out` is not finite."""
    out, wanted = out.float(), wanted.float()
    if not bool(out.isfinite().all()):
        return float("nan")
    return ((out - wanted).norm() / wanted.norm()).item()


def worst(errors: list[float]) -> float:
    """The largest; NaN if one is, which `max` can miss."""
    return max(errors, key=lambda error: (error != error, error))


def error_row(run: str, sparsity: float, against: str, error: float) -> Row:
    return {
        "what": "one forward",
        "run": run,
        "sparsity": sparsity,
        "against": against,
        "relative_error": error,
    }


def failed_row(what: str, run: str, error: BaseException) -> Row:
    """A measurement that was tried and could not be made, and why."""
    text = " ".join(str(error).split()) or "no message"
    return {"what": what, "run": run, "failed": f"{type(error).__name__}: {text[:300]}"}


def milliseconds(run: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - start) * 1e3


def time_in_turn(
    runs: Runs,
    rounds: int,
    blocks: int | None = None,
    save: Callable[[list[Row]], None] = lambda _rows: None,
) -> list[Row]:
    """Milliseconds of each run, all in turn, so that a card that heats slows all of them.

    Parameters
    ----------
    runs
        Warm already.
    blocks
        If given, rows also hold the time of a forward call over its number of blocks.
    save
        Gets the rows after each round, so that one that is cut off leaves those before it.
    """
    times: dict[tuple[str, float], list[float]] = {key: [] for key in runs}
    rows: list[Row] = []
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(milliseconds(run))
        rows = [_time_row(key, values, blocks) for key, values in times.items()]
        save(rows)
    return rows


def _time_row(key: tuple[str, float], values: list[float], blocks: int | None) -> Row:
    name, sparsity = key
    row = {"what": "time of one forward", "run": name, "sparsity": sparsity, **spread(values)}
    row["rounds"] = len(values)
    if blocks is not None:
        row["ms_per_block"] = round(statistics.median(values) / blocks, 2)
    return row


def spread(values: list[float]) -> Row:
    """Median and range of times."""
    return {
        "ms": round(statistics.median(values), 2),
        "ms_min": round(min(values), 2),
        "ms_max": round(max(values), 2),
    }


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the main thread as soon as Python runs again after `seconds`.

    It is raised every second until it gets out, because compilers swallow some exceptions.
    """

    def stop(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not done after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def wrong_rows(rows: list[Row], tolerance: float = TOLERANCE) -> list[Row]:
    """Rows whose error is not below the tolerance, and rows that failed."""
    return [
        row
        for row in rows
        if "failed" in row or not row.get("relative_error", 0.0) < tolerance  # NaN is wrong too
    ]
