"""Few layers of a model, or all of them, on one GPU and on several that share its tokens.

    torchrun --nproc-per-node 4 -m benchmarks.engine.several --model hunyuanvideo --overlap
    torchrun --nproc-per-node 8 -m benchmarks.engine.several --model wan2.1-14b --guidance
    torchrun --nproc-per-node 2 -m benchmarks.engine.several --tiny --output OUT

Seeded random weights at full width and 720p, RainFusion in every block, blocks compiled, as
`Pipeline` does it. Of 8 GPUs, 1, 2, 4 and 8 share a clip, all in turn in one run; where fewer than
all share one, all groups of them do it at the same time. First whole forwards, dense and sparse,
then the attention of one block with its planning, the same over the heads of one GPU, and the
exchange of tokens for heads without attention. A time is that of the slowest GPU. ``--overlap``
adds forwards with `ParallelConfig(overlap=True)`; ``--guidance`` a step of classifier-free guidance
by two groups of GPUs beside one by all; ``--layers`` or ``--complete`` take more blocks, beside
which what a forward does once weighs less. Writes ``several_<model>[_<N>-layers]_<P>.json``.
``--tiny`` rehearses it on the CPU.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo
import torch.distributed as dist
import typer

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Row, wrong_rows
from benchmarks.engine.several_attention import attention_rows
from benchmarks.engine.several_forwards import forward_rows
from benchmarks.record import RESULTS, write_result
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import AttentionSettings

LAYERS = {"wan2.1-14b": 2, "hunyuanvideo": 1, "cogvideox-5b": 2}
GRAPHS = 64  # of one code: a few for each number of GPUs; torch.compile gives up at eight
NOTE = (
    "seeded random weights, blocks through torch.compile, each size by itself. All numbers of GPUs "
    "in turn in one run, groups of fewer than all side by side; each time is that of the slowest "
    "GPU, a third of three calls in a row (one call of a complete model); relative errors are "
    "against the forward on one GPU. "
    "Peak memory is what torch allocates in a forward beyond what was allocated before it. "
    "Overlap: the heads of a GPU in two groups, of which one attends while the tokens of the other "
    "travel"
)
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(LAYERS)}.")] = "wan2.1-14b",
    sparsity: Annotated[float, typer.Option(help="Of every block.")] = 0.8,
    dense: Annotated[bool, typer.Option(help="Sparsity 0 as well.")] = True,
    method: Annotated[str, typer.Option(help="How attention chooses.")] = "piecewise",
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 7,
    overlap: Annotated[
        bool, typer.Option("--overlap", help="Forwards with overlap as well.")
    ] = False,
    guidance: Annotated[
        bool, typer.Option("--guidance", help="Steps of guidance by two groups as well.")
    ] = False,
    layers: Annotated[int | None, typer.Option(help="Blocks of each kind.", min=1)] = None,
    complete: Annotated[bool, typer.Option("--complete", help="All blocks of the model.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with a tiny network.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Compare, time and write the file."""
    if model not in LAYERS:
        raise InvalidInputError(f"--model {model} is none of {', '.join(LAYERS)}")
    if layers and complete:
        raise InvalidInputError(f"--layers {layers} and --complete exclude each other")
    settings = AttentionSettings(method=method)  # type: ignore[arg-type]  # which checks it
    if not tiny:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if tiny else "nccl")
    try:
        world = dist.get_world_size()
        if world == 1:
            raise InvalidInputError("one process shares nothing: give --nproc-per-node 2 or more")
        given: dict[str, Any] = {"method": settings.method}
        given |= {"device": "cpu", "dtype": torch.float32} if tiny else {}
        blocks = None if complete else layers or LAYERS[model]
        case = Case.standard(model, layers=blocks, tiny=tiny, **given)
        levels = [0.0, sparsity] if dense and sparsity > 0.0 else [sparsity]
        rows = measure(case, levels, rounds, overlap=overlap, guidance=guidance)
        if dist.get_rank() == 0:
            part = "_complete" * complete or (f"_{layers}-layers" if layers else "")
            name = f"several_{model}{part}_{world}"
            write_result(name, rows, note=f"{world} processes; {NOTE}", folder=output)
            for row in rows:
                print(row, flush=True)
    finally:
        dist.destroy_process_group()
    if bad := wrong_rows(rows):
        raise SystemExit(f"{len(bad)} results are wrong or missing: {bad}")


@torch.no_grad()
def measure(
    case: Case,
    levels: Sequence[float],
    rounds: int,
    *,
    overlap: bool = False,
    guidance: bool = False,
) -> list[Row]:
    """All rows, the same on every process; memory and guidance at the last of the sparsities."""
    world = dist.get_world_size()
    # As in a process of its own: for the sizes of the second network torch.compile would otherwise
    # make graphs of any size, whose kernels know less.
    own_sizes: dict[str, Any] = {"automatic_dynamic_shapes": False}
    with torch._dynamo.config.patch(recompile_limit=GRAPHS, **own_sizes):
        rows = forward_rows(case, levels, rounds, overlap=overlap, guidance=guidance)
        rows += attention_rows(case, levels, rounds, overlap=overlap)
    return [{"processes": world, **case.facts(), **row} for row in rows]


if __name__ == "__main__":
    run_app(app, show_time=False)
