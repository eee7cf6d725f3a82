"""Time method piecewise beside rainfusion2 at the same sparsity, in turn in one run.

    python scripts/bench_methods.py [--shapes hunyuanvideo-720p ...] [--name methods]

Both methods get the same q, k and v, heads without a pattern. Every round takes the methods, their
plans alone and cuDNN's dense attention in an order of its own, and each timing follows an untimed
replay of the same call. Work is what the attention kernel computes in whole tiles, wasted rows
counted, as a share of dense attention; its speed is that work over the time without planning. That
the results are right is tested by tests/gpu.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.attention.baselines import cudnn
from benchmarks.attention.shapes import RANDOM, SHAPES, Shape, inputs_of
from benchmarks.attention.timing import graph_capture, milliseconds, order_of
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.cuda_ops import launch
from rainfusion_trt.operator.native_types import Plan
from rainfusion_trt.operator.settings import AttentionSettings, Method

logger = logging.getLogger("rainfusion_trt.bench")
app = typer.Typer(add_completion=False, help=__doc__)
METHODS: tuple[Method, ...] = ("rainfusion2", "piecewise")
SPARSITIES = (0.5, 0.64, 0.8, 0.9)
CUDNN = "cudnn dense"
_NOTE = " ".join((__doc__ or "").split("\n\n")[2].split())
Row = dict[str, Any]
Run = Callable[[], object]


@app.command()
def main(
    shapes: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    sparsities: Annotated[list[float] | None, typer.Option(help="0 is dense.")] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each case.", min=5)] = 7,
    name: Annotated[str, typer.Option(help="Name of the JSON file.")] = "methods",
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Time the methods and write ``NAME.json``, anew after every shape."""
    if unknown := [shape for shape in shapes or () if shape not in SHAPES]:
        raise InvalidInputError(f"--shapes {', '.join(unknown)}: known are {', '.join(SHAPES)}")
    if not torch.cuda.is_available():
        raise InvalidInputError("there is no CUDA GPU to measure on")
    rows: list[Row] = []
    for shape in shapes or SHAPES:
        rows += measure(shape, SHAPES[shape], tuple(sparsities or SPARSITIES), rounds)
        path = write_result(name, rows, note=_NOTE, folder=output)
        logger.info("wrote %s", path)


def measure(name: str, shape: Shape, sparsities: tuple[float, ...], rounds: int) -> list[Row]:
    """Rows of one shape: the methods at every sparsity, and cuDNN dense."""
    q, k, v = inputs_of(shape, RANDOM, torch.bfloat16, torch.device("cuda"))
    layout = shape.layout()
    captured = graph_capture()
    alive: list[Run] = []  # with the tensors whose addresses the graphs hold

    def capture(run: Run) -> Run:
        alive.append(run)
        run()  # what is made in the first call, such as cuDNN's plan, cannot be captured
        return captured(run)

    runs: dict[tuple[str, float, str], Run] = {
        (CUDNN, 0.0, "all"): capture(partial(cudnn, q, k, v))
    }
    plans: dict[tuple[str, float], tuple[float, float]] = {}
    for method in METHODS:
        settings = AttentionSettings(text=layout.text, sink_frames=1, method=method)
        for s in (0.0, *sparsities):
            device_s = torch.full((1,), s, device=q.device)
            given: dict[str, Any] = {"text": layout.text, "sink_frames": 1, "method": method}
            plan = classify_heads(q, k, layout.grid, sparsity=device_s, **given)
            plans[method, s] = plan.density.mean().item(), plan.work.mean().item()
            whole = partial(rainfusion_attention, q, k, v, layout.grid, sparsity=device_s, **given)
            alone = partial(_plan, q, k, v, layout.grid, device_s, settings)
            runs[method, s, "all"] = capture(whole)
            runs[method, s, "plan"] = capture(alone)
    times = time_in_turn(runs, rounds)
    alive.clear()
    dense = statistics.median(times[CUDNN, 0.0, "all"])
    rows: list[Row] = [{"shape": name, "method": CUDNN, "sparsity": 0.0, **_times(times, CUDNN, 0)}]
    for (measured, s), (density, work) in plans.items():
        row: Row = {"shape": name, "method": measured, "sparsity": s, **_times(times, measured, s)}
        planning = statistics.median(times[measured, s, "plan"])
        row |= {
            "plan_ms": round(planning, 3),
            "plan_share_of_cudnn": round(planning / dense, 4),
            "times_cudnn": round(dense / row["ms"], 3),
            "density": round(density, 4),
            "work": round(work, 4),
            "tflops_of_work": round(shape.dense_work * work / (row["ms"] - planning) / 1e9, 1),
        }
        if measured != METHODS[0]:
            before = statistics.median(times[METHODS[0], s, "all"])
            row["of_rainfusion2"] = round(row["ms"] / before, 4)
        rows.append(row)
        print(row, flush=True)
    return rows


def time_in_turn(runs: dict[tuple[str, float, str], Run], rounds: int) -> dict[Any, list[float]]:
    """Milliseconds of every run, once a round."""
    keys = list(runs)
    times: dict[Any, list[float]] = {key: [] for key in keys}
    for turn in range(rounds):
        for place in order_of(turn, len(keys)):
            times[keys[place]].append(milliseconds(runs[keys[place]]))
    return times


def _plan(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: tuple[int, int, int],
    sparsity: Tensor,
    settings: AttentionSettings,
) -> None:
    launch("classify", (q, k, v, None), grid, sparsity, None, settings, plan=Plan())


def _times(times: dict[Any, list[float]], method: str, sparsity: float) -> Row:
    mine = times[method, sparsity, "all"]
    return {
        "ms": round(statistics.median(mine), 3),
        "ms_min": round(min(mine), 3),
        "ms_max": round(max(mine), 3),
        "rounds": len(mine),
    }


if __name__ == "__main__":
    run_app(app, show_time=True)
