"""Time attention of 8 bits beside that of 16 and cuDNN's, in turn in one run.

    python -m benchmarks.attention.precision [--shapes hunyuanvideo-720p ...] [--name precision]

q, k and v are random normal. Every round takes the precisions at every sparsity and cuDNN's dense
attention in an order of its own, and each timing follows an untimed replay of the same call.
Rounding to 8 bits is in every time. The error is that of dense rows of two heads against float64.
Parts are the device time of each kernel of one call, by the profiler.
"""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.attention.baselines import cudnn
from benchmarks.attention.methods import time_in_turn
from benchmarks.attention.shapes import SHAPES, Shape
from benchmarks.attention.timing import graph_capture
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import PRECISIONS

logger = logging.getLogger("rainfusion_trt.bench")
app = typer.Typer(add_completion=False, help=__doc__)
CUDNN = "cudnn"
METHOD = "piecewise"
CHOSEN = ("cogvideox-5b", "hunyuanvideo-720p", "wan2.1-14b-720p")  # head sizes that 8 bits have
_NOTE = " ".join((__doc__ or "").split("\n\n")[2].split())
_ROWS = 256  # whose error is looked at
Row = dict[str, Any]
Run = Callable[[], Any]


@app.command()
def main(
    shapes: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CHOSEN)}.")] = None,
    sparsities: Annotated[list[float] | None, typer.Option(help="Beside 0, dense.")] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each case.", min=5)] = 7,
    name: Annotated[str, typer.Option(help="Name of the JSON file.")] = "precision",
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Time the precisions and write ``NAME.json``, anew after every shape."""
    if unknown := [shape for shape in shapes or () if shape not in CHOSEN]:
        raise InvalidInputError(f"--shapes {', '.join(unknown)}: known are {', '.join(CHOSEN)}")
    if not torch.cuda.is_available():
        raise InvalidInputError("there is no CUDA GPU to measure on")
    rows: list[Row] = []
    for shape in shapes or CHOSEN:
        rows += measure(shape, SHAPES[shape], tuple(sparsities or (0.64, 0.8, 0.9)), rounds)
        logger.info("wrote %s", write_result(name, rows, note=_NOTE, folder=output))


def measure(name: str, shape: Shape, sparsities: tuple[float, ...], rounds: int) -> list[Row]:
    """Rows of one shape: both precisions at every sparsity, and cuDNN dense."""
    layout = shape.layout()
    generator = torch.Generator("cuda").manual_seed(0)
    size = (3, shape.batch, shape.heads, layout.tokens, shape.head_size)
    drawn = torch.randn(size, generator=generator, device="cuda", dtype=torch.bfloat16)
    q, k, v = drawn.unbind(0)
    captured = graph_capture()
    plain: dict[tuple[str, float, str], Run] = {(CUDNN, 0.0, "all"): partial(cudnn, q, k, v)}
    work: dict[tuple[str, float], float] = {(CUDNN, 0.0): 1.0}
    for precision in PRECISIONS:
        for s in (0.0, *sparsities):
            given: dict[str, Any] = {
                "text": layout.text,
                "method": METHOD,
                "precision": precision,
                "sparsity": torch.full((1,), s, device=q.device),
            }
            plan = classify_heads(q, k, layout.grid, **given)
            work[precision, s] = plan.density.mean().item()
            plain[precision, s, "all"] = partial(
                rainfusion_attention, q, k, v, layout.grid, **given
            )
    errors = {}
    for key, run in plain.items():  # once all: what is made in a first call cannot be captured
        out = run()
        if key[1] == 0:
            errors[key] = dense_error(q, k, v, out)
        del out
    times = time_in_turn({key: captured(run) for key, run in plain.items()}, rounds)
    dense = statistics.median(times[CUDNN, 0.0, "all"])
    rows = []
    for key, run in plain.items():
        precision, s, _ = key
        median = statistics.median(times[key])
        row: Row = {
            "shape": name,
            "precision": precision,
            "sparsity": s,
            "ms": round(median, 3),
            "ms_min": round(min(times[key]), 3),
            "ms_max": round(max(times[key]), 3),
            "rounds": rounds,
            "times_cudnn": round(dense / median, 3),
            "density": round(work[precision, s], 4),
            "tflops": round(shape.dense_work * work[precision, s] / median / 1e9, 1),
        }
        if key in errors:
            row["relative_error"] = round(errors[key], 5)
        if precision != CUDNN:
            row["parts_ms"] = parts_of(run)
        rows.append(row)
        print(row, flush=True)
    return rows


def dense_error(q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> float:
    """Relative error of some rows of the first and the last head against float64."""
    rows = torch.linspace(0, q.shape[2] - 1, _ROWS, device=q.device).long()
    worst = 0.0
    for b, h in ((0, 0), (q.shape[0] - 1, q.shape[1] - 1)):
        scores = q[b, h, rows].double() @ k[b, h].double().T * q.shape[3] ** -0.5
        wanted = torch.softmax(scores, -1) @ v[b, h].double()
        error = (out[b, h, rows].double() - wanted).norm() / wanted.norm()
        worst = max(worst, error.item())
    return worst


def parts_of(run: Run) -> dict[str, float]:
    """Milliseconds on the device of every kernel of one call, by its name."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    parts: dict[str, float] = {}
    for event in seen.key_averages():
        found = re.search(r"(\w+_kernel)\b", event.key)
        if found and event.device_time_total:
            name = found.group(1)
            parts[name] = round(parts.get(name, 0.0) + event.device_time_total / 1000, 3)
    return parts


if __name__ == "__main__":
    run_app(app, show_time=True)
