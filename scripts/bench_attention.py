"""Attention speed: RainFusion's kernels beside cuDNN, in turn in one run.

    python scripts/bench_attention.py [--shapes cogvideox-5b ...] [--mixes mixed ...] [--output DIR]

Every timed case is first checked on sampled query rows against float32. The card's clock falls as
it heats, so that only figures of one run may be compared; each round times every rival once.
TFLOP/s count kept work: 4 * S * S * D * N * B * density / time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from results import write_result
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rainfusion_trt import classify_heads, native, rainfusion_attention, reference
from rainfusion_trt.cuda_ops import launch
from rainfusion_trt.geometry import Kind, TokenLayout
from rainfusion_trt.testing import synthetic_heads

TOLERANCE = 1e-2  # relative, bfloat16: rounding of probabilities and output


@dataclass(frozen=True)
class Shape:
    """One model's attention at its standard size."""

    batch: int
    heads: int
    head_size: int
    grid: tuple[int, int, int]
    text_tokens: int
    text: str

    @property
    def layout(self) -> TokenLayout:
        return TokenLayout(self.grid, math.prod(self.grid) + self.text_tokens, self.text)


SHAPES = {
    "cogvideox-5b": Shape(2, 48, 64, (13, 30, 45), 226, "first"),
    "opensoraplan-720p": Shape(1, 24, 96, (24, 45, 80), 0, "none"),
    "hunyuanvideo-720p": Shape(1, 24, 128, (33, 45, 80), 256, "last"),
    "wan2.1-14b-480p": Shape(1, 40, 128, (21, 30, 52), 0, "none"),
    "wan2.1-14b-720p": Shape(1, 40, 128, (21, 45, 80), 0, "none"),
}
THIRDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)


@dataclass
class Case:
    """A rival at one setting: what to time, and the share of pairs it computes."""

    name: str
    sparsity: float
    density: float
    run: Callable[[], Tensor]
    times: list[float]


def heads_of(shape: Shape, mix: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v whose heads are all of one kind, or a third of each ("mixed")."""
    if mix == "mixed":
        row = [THIRDS[h % 3] for h in range(shape.heads)]
    else:
        row = [Kind[mix.upper()]] * shape.heads
    return synthetic_heads(
        shape.layout, [row] * shape.batch, shape.head_size, dtype=dtype, device="cuda"
    )


def check_rows(out: Tensor, q, k, v, layout: TokenLayout, arguments: dict) -> float:
    """Relative error of one head per kind against the float32 reference."""
    plan = classify_heads(q, k, layout.grid, **arguments)
    worst = 0.0
    for kind in plan.kind.unique().tolist():
        b, h = (plan.kind == kind).nonzero()[-1].tolist()
        pick = (slice(b, b + 1), slice(h, h + 1))
        head = (x[pick].float() for x in (q, k, v))
        wanted = reference.rainfusion_attention(*head, layout.grid, **arguments)
        worst = max(worst, ((out[pick].float() - wanted).norm() / wanted.norm()).item())
    if not worst < TOLERANCE:
        raise SystemExit(f"wrong result: relative error {worst:.2e} for {arguments}")
    return worst


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def captured(run: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """`run` as a CUDA graph, so that its time is the device's and not that of Python."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def milliseconds(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def cases_for(q, k, v, layout: TokenLayout, method: str, sparsities) -> tuple[list[Case], list]:
    """Our cases, their planning alone, and cuDNN; each checked once."""
    cases, errors = [], []
    for s in sparsities:
        arguments = {"text": layout.text, "sparsity": s, "method": method}
        density = classify_heads(q, k, layout.grid, **arguments).density.mean().item()
        # The sparsity is a device tensor here as in an engine, so no host work is timed.
        device_s = torch.full((1,), s, device="cuda")

        on_device = {**arguments, "sparsity": device_s}
        run = partial(rainfusion_attention, q, k, v, layout.grid, **on_device)
        on_device |= {"kv_len": None, "alpha": 0.9, "sink_frames": 1, "scale": None}
        tensors = (q, k, k, None)
        plan = partial(launch, "classify", tensors, layout.grid, native.Plan(), on_device)
        errors.append(check_rows(run(), q, k, v, layout, arguments))
        cases.append(Case("rainfusion", s, density, run, []))
        cases.append(Case("plan only", s, 0.0, plan, []))
    cases.append(Case("cudnn", 0.0, 1.0, lambda: cudnn(q, k, v), []))
    return cases, errors


def measure(name: str, mix: str, method: str, sparsities, rounds: int) -> list[dict]:
    """Time every rival `rounds` times in turn."""
    shape = SHAPES[name]
    layout = shape.layout
    q, k, v = heads_of(shape, mix, torch.bfloat16)
    cases, errors = cases_for(q, k, v, layout, method, sparsities)
    graphs = [captured(case.run) for case in cases]
    for _ in range(rounds):
        for case, graph in zip(cases, graphs, strict=True):
            case.times.append(milliseconds(graph.replay))
    dense_work = 4 * layout.tokens**2 * shape.head_size * shape.heads * shape.batch
    rows = []
    for case in cases:
        median = statistics.median(case.times)
        rows.append(
            {
                "shape": name,
                "head_size": shape.head_size,
                "heads": mix,
                "method": method,
                "rival": case.name,
                "sparsity": case.sparsity,
                "density": round(case.density, 4),
                "ms": round(median, 3),
                "ms_min": round(min(case.times), 3),
                "ms_max": round(max(case.times), 3),
                "tflops": round(dense_work * case.density / median / 1e9, 1),
                "relative_error": max(errors),
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    table = Table()
    columns = ("shape", "heads", "method", "rival", "sparsity", "density", "ms", "tflops")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=130).print(table)


def main(
    shapes: Annotated[list[str] | None, typer.Option(help=f"of {', '.join(SHAPES)}")] = None,
    mixes: Annotated[
        list[str] | None, typer.Option(help="spatial, temporal, textural, mixed")
    ] = None,
    sparsities: Annotated[list[float] | None, typer.Option()] = None,
    rounds: Annotated[int, typer.Option(help="timings of each case")] = 7,
    output: Annotated[Path | None, typer.Option(help="folder of the JSON file")] = None,
) -> None:
    """Time attention and write ``attention.json``."""
    shapes = shapes or list(SHAPES)
    sparsities = sparsities or [0.0, 0.5, 0.64, 0.8, 0.9]
    if unknown := set(shapes) - set(SHAPES):
        raise typer.BadParameter(f"{', '.join(unknown)} is not one of {', '.join(SHAPES)}")
    rows = []
    for name in shapes:
        for mix in mixes or ["spatial", "temporal", "textural", "mixed"]:
            rows += measure(name, mix, "rainfusion", sparsities, rounds)
            show(rows[-2 * len(sparsities) - 1 :])
        # Block lists of no pattern at all: the best blocks of random means.
        random_lists = [0.45, 0.65, 0.8, 0.9]
        rows += measure(name, "textural", "rainfusion2", random_lists, rounds)
        show(rows[-2 * len(random_lists) - 1 :])
        print(f"wrote {write_result('attention', rows, folder=output)}", flush=True)


if __name__ == "__main__":
    typer.run(main)
