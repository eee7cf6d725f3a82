"""Time the cases of a shape in turn and make rows of results."""

from __future__ import annotations

import logging
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.attention.baselines import ReadyCase, Workload
from benchmarks.attention.cases import OURS, PLAN, Case
from benchmarks.attention.check import TOLERANCE
from benchmarks.attention.gather import gather_milliseconds
from benchmarks.attention.shapes import Shape

logger = logging.getLogger("rainfusion_trt.bench")
Row = dict[str, Any]
Replay = Callable[[], object]


class WrongResultError(Exception):
    """Rows differ from float32 by more than rounding."""


@dataclass(frozen=True)
class Checked:
    """A case whose result is right, with its largest relative error; None for plans."""

    ready: ReadyCase
    error: float | None
    replay: Replay


def check_cases(
    workload: Workload, cases: Sequence[Case], capture: Callable[[Replay], Replay]
) -> tuple[list[Checked], list[str]]:
    """Run every case once, check its rows and capture it.

    Parameters
    ----------
    capture
        Turn a launch into the call that is timed, see `graph_capture`.

    Returns
    -------
    list of Checked
        The cases that can be timed.
    list of str
        Why a baseline is left out: it failed, or its result is wrong.

    Raises
    ------
    SystemExit
        A result of our own kernels is wrong.
    """
    checked: list[Checked] = []
    left_out: list[str] = []
    for case in cases:
        own = case.implementation in (OURS, PLAN)
        try:
            ready = workload.ready_case(case)
            out = ready.run()
            error = None if out is None else ready.rows.error(out, ready.positions)
            del out
            if error is not None and not error < TOLERANCE:
                raise WrongResultError(
                    f"{case.implementation} on {case.lists}: relative error {error:.2e}"
                )
            checked.append(Checked(ready, error, capture(ready.run)))
        except WrongResultError as wrong:
            if own:
                raise SystemExit(f"wrong result: {wrong}") from wrong
            left_out.append(f"wrong result of {wrong}")
            logger.warning("%s", left_out[-1])
        except Exception as failure:
            if own:
                raise
            # A baseline's compiler may refuse a shape; the others are timed all the same.
            left_out.append(f"{case.implementation} on {case.lists}: {first_line(failure)}")
            logger.warning("%s", left_out[-1], exc_info=failure)
    return checked, left_out


def graph_capture() -> Callable[[Replay], Replay]:
    """Capture of launches as CUDA graphs, so that no work of Python is timed.

    All graphs share their memory, as they are replayed one at a time and nobody reads the outputs.
    """
    pool = torch.cuda.graph_pool_handle()

    def capture(run: Replay) -> Replay:
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            run()
        return graph.replay

    return capture


def time_in_turn(name: str, shape: Shape, ready: Sequence[Checked], rounds: int) -> list[Row]:
    """Time every case once a round, then the gather of our sparse calls apart."""
    times: list[list[float]] = [[] for _ in ready]
    for turn in range(rounds):
        for place in order_of(turn, len(ready)):
            times[place].append(milliseconds(ready[place].replay))
    rows = []
    for one, mine in zip(ready, times, strict=True):
        row = row_of(name, shape, one.ready, one.error, mine)
        case = one.ready.case
        if (
            case.implementation == OURS
            and not case.lists.dense
            and case.lists.method == "rainfusion"
        ):
            row["gather_ms"] = round(gather_milliseconds(one.ready.run), 3)
        rows.append(row)
    return rows


def order_of(turn: int, count: int) -> list[int]:
    """Order of the cases in a round, drawn anew for each, as the card heats within a round."""
    order = list(range(count))
    random.Random(turn).shuffle(order)
    return order


def row_of(
    name: str, shape: Shape, ready: ReadyCase, error: float | None, times: Sequence[float]
) -> Row:
    """A case's times; TFLOP/s count kept work: 4 * S * S * D * N * B * density / time."""
    case, lists = ready.case, ready.lists
    density = 0.0 if case.implementation == PLAN else lists.density
    median = statistics.median(times)
    row: Row = {
        "shape": name,
        "head_size": shape.head_size,
        "heads": case.lists.heads,
        "method": case.lists.method,
        "rival": case.implementation,  # the name of this column in every result file
        "sparsity": lists.sparsity,
        "density": round(density, 4),
        "ms": round(median, 3),
        "ms_min": round(min(times), 3),
        "ms_max": round(max(times), 3),
        "rounds": len(times),
        "tflops": round(shape.dense_work * density / median / 1e9, 1),
    }
    return row if error is None else row | {"relative_error": error}


def milliseconds(run: Replay) -> float:
    # Untimed: what has just run decides how much power the card grants, so let that be the same.
    run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:200]
