"""Memory of a forward on one of several GPUs, measured on a single one that plays it.

    python -m benchmarks.engine.share_memory --model wan2.1-14b --gpus 2 --gpus 4 --gpus 8
    python -m benchmarks.engine.share_memory --tiny --gpus 2 --output OUT

One process in a process group of PyTorch's that sends nothing: it allocates what each of so many
GPUs would, seeded random weights at full width and 720p, RainFusion in every block, blocks
compiled for its own sizes. What it attends to is what happens to be in memory, so that its times
would mean nothing. Writes ``share_memory_<model>.json``. ``--tiny`` rehearses it on the CPU, where
nothing is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo
import torch.distributed as dist
import typer

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager
from benchmarks.engine.measure import Row, release
from benchmarks.engine.several import LAYERS
from benchmarks.engine.several_clock import Way, mesh_of, peak_gib
from benchmarks.engine.several_forwards import FORWARD, OVERLAP, shared
from benchmarks.record import RESULTS, write_result
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError

NOTE = (
    "seeded random weights, blocks through torch.compile. One process plays the first of so many "
    "that share a clip's tokens; nothing is sent. Peak memory is what torch allocates in a forward "
    "beyond what was allocated before it, and `share` its part of one GPU's"
)
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(LAYERS)}.")] = "wan2.1-14b",
    gpus: Annotated[list[int], typer.Option(help="How many share a clip; several times.")] = [2, 4],  # noqa: B006  # typer's way to say it
    sparsity: Annotated[float, typer.Option(help="Of every block.")] = 0.8,
    layers: Annotated[int | None, typer.Option(help="Blocks of each kind.", min=1)] = None,
    overlap: Annotated[bool, typer.Option("--overlap", help="With overlap as well.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with a tiny network.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure and write the file."""
    if model not in LAYERS:
        raise InvalidInputError(f"--model {model} is none of {', '.join(LAYERS)}")
    if few := [n for n in gpus if n < 2]:
        raise InvalidInputError(f"--gpus {few[0]} shares nothing: give 2 or more")
    given: dict[str, Any] = {"device": "cpu", "dtype": torch.float32} if tiny else {}
    case = Case.standard(model, layers=layers or LAYERS[model], tiny=tiny, **given)
    rows = measure(case, sorted(set(gpus)), sparsity, overlap=overlap)
    write_result(f"share_memory_{model}", rows, note=NOTE, folder=output)
    for row in rows:
        print(row, flush=True)


@torch.no_grad()
def measure(case: Case, gpus: list[int], sparsity: float, *, overlap: bool) -> list[Row]:
    """A row for one GPU, and for every number of them with and without overlap."""
    alone = Eager(case)
    twins = {
        Way(run, n, sparsity): alone.twin()  # before one is enabled
        for n in gpus
        for run in ((FORWARD, OVERLAP) if overlap else (FORWARD,))
    }
    rows: list[Row] = []
    for way, eager in {Way(FORWARD, 1, sparsity): alone, **twins}.items():
        peak = _peak(way, eager)
        row = way.row("peak memory less weights")
        if peak is not None:
            row["gib"] = round(peak, 3)
            row["share"] = round(peak / rows[0]["gib"], 3) if rows else 1.0
        rows.append({**case.facts(), **row})
    return rows


def _peak(way: Way, eager: Eager) -> float | None:
    """Of one forward after another, in GiB; None on the CPU."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=way.gpus)
    try:
        shared(eager, way, mesh_of(way.gpus, eager.case.device))
        eager()
        return peak_gib(eager)
    finally:
        dist.destroy_process_group()
        torch._dynamo.reset()
        release()


if __name__ == "__main__":
    run_app(app, show_time=False)
