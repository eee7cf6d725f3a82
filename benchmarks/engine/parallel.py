"""Wan 2.1 14B on several GPUs through diffusers' context parallelism, eager and compiled.

    torchrun --nproc-per-node 2 -m benchmarks.engine.parallel
    torchrun --nproc-per-node 2 -m benchmarks.engine.parallel --tiny --output OUT

Two blocks with seeded random weights at 720p. On one GPU and on all of them (Ulysses): diffusers'
own attention through cuDNN and `enable(sparsity=0.5)`, each eager and compiled, timed in turn. The
time of a forward on several GPUs is that of the slowest. Every answer is compared with that of one
GPU. Writes ``parallel_<model>.json``. ``--tiny`` rehearses it with processes on the CPU.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo
import torch.distributed as dist
import typer
from torch import Tensor, nn

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager
from benchmarks.engine.measure import (
    Row,
    error_row,
    milliseconds,
    relative_error,
    spread,
    wrong_rows,
)
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import enable
from rainfusion_trt.errors import RainFusionError

MODEL, LAYERS, SPARSITY = "wan2.1-14b", 2, 0.5
NOTE = (
    "seeded random weights. One GPU and all of them in turn in one run; relative errors against "
    "the same forward on one GPU, eager. Compilation with dynamic=False"
)
Run = Callable[[], Tensor]
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 7,
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "inductor",
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with a tiny network.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Compare, time and write the file."""
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = "cpu" if tiny else f"cuda:{os.environ['LOCAL_RANK']}"
    if not tiny:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if tiny else "nccl")
    try:
        rows = measure(tiny, device, rounds, compiler)
        if rank == 0:
            write_result(
                f"parallel_{MODEL}", rows, note=f"{world} processes; {NOTE}", folder=output
            )
            for row in rows:
                print(row, flush=True)
    finally:
        dist.destroy_process_group()
    if bad := wrong_rows(rows):
        raise SystemExit(f"{len(bad)} results are wrong or missing: {bad}")


def measure(tiny: bool, device: str, rounds: int, compiler: str) -> list[Row]:
    """All rows, the same on every process but for errors of its own part."""
    if tiny:  # of which two processes can share the heads
        case = Case.standard("wan2.1-1.3b", tiny=True, device="cpu", dtype=torch.float32)
    else:
        case = Case.standard(MODEL, layers=LAYERS)
    dense = Eager(case)
    sparse = dense.twin()
    options: dict[str, Any] = {"model": case.model, "method": case.method}
    routings = [enable(sparse.transformer, sparsity=SPARSITY, **options)]
    alone: dict[str, Run] = {"dense": dense, "rainfusion": sparse}
    answers = {name: run() for name, run in alone.items()}

    spread_out: dict[str, Run] = {}
    for name, eager in (("dense", dense), ("rainfusion", sparse)):
        other = dense.twin()
        if name == "rainfusion":
            routings.append(enable(other.transformer, sparsity=SPARSITY, **options))
        parallelise(other.transformer, device)
        spread_out[name] = other
        del eager
    compiled: Any = partial(torch.compile, backend=compiler, dynamic=False)
    runs: dict[tuple[str, str, str], Run] = {}
    for place, group in (("one", alone), ("all", spread_out)):
        for name, run in group.items():
            assert isinstance(run, Eager)
            runs[place, name, "eager"] = run
            runs[place, name, "compiled"] = partial(run, module=compiled(run.transformer))

    rows: list[Row] = []
    for (place, name, how), run in runs.items():
        error = torch.tensor(relative_error(run(), answers[name]))
        rows.append(error_row(f"{place}, {name}, {how}", _s(name), "one, eager", slowest(error)))
    for routing in routings:
        if routing.routed != case.blocks:
            rows.append({"what": "routed", "failed": str(routing.report())})
    times: dict[tuple[str, str, str], list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            dist.barrier()
            times[key].append(slowest(torch.tensor(milliseconds(run))))
    for (place, name, how), values in times.items():
        row: Row = {"what": "time of one forward", "run": f"{place}, {name}, {how}"}
        rows.append({**row, "sparsity": _s(name), **spread(values)})
    for name in alone:
        for how in ("eager", "compiled"):
            one, all_ = (statistics.median(times[place, name, how]) for place in ("one", "all"))
            rows.append(
                {"what": "speed-up", "run": f"{name}, {how}", "times": round(one / all_, 3)}
            )
    return [{"processes": dist.get_world_size(), **case.facts(), **row} for row in rows]


def parallelise(transformer: nn.Module, device: str) -> None:
    """Cut the sequence over all processes, as diffusers does."""
    from diffusers import ContextParallelConfig

    degrees = {"ulysses_degree": dist.get_world_size()}
    if device != "cpu":
        transformer.enable_parallelism(config=ContextParallelConfig(**degrees))  # type: ignore[operator]
        return
    # The same without an accelerator, for which enable_parallelism asks.
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    context = ContextParallelConfig(**degrees)
    config = ParallelConfig(context_parallel_config=context)
    shape = (context.ring_degree, context.ulysses_degree)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("ring", "ulysses"))
    config.setup(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), mesh=mesh)
    for module in transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
    apply_context_parallel(transformer, context, transformer._cp_plan)


def _s(name: str) -> float:
    return SPARSITY if name == "rainfusion" else 0.0


def slowest(value: Tensor) -> float:
    """The largest of all processes; NaN if one has it."""
    values = [0.0] * dist.get_world_size()
    dist.all_gather_object(values, value.item())
    return max(values, key=lambda x: (x != x, x))


if __name__ == "__main__":
    try:
        app()
    except RainFusionError as error:
        raise SystemExit(f"error: {error}") from error
