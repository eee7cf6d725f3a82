"""Few layers of a model on one GPU and on several that share its tokens, as `Pipeline` does it.

    torchrun --nproc-per-node 4 -m benchmarks.engine.several --model hunyuanvideo
    torchrun --nproc-per-node 2 -m benchmarks.engine.several --tiny --output OUT

Seeded random weights at full width and 720p, RainFusion in every block, blocks compiled. In turn in
one run: a forward on one GPU and on all, the attention of one block with its planning, the same
over the heads of one GPU, and the exchange of tokens for heads without attention. A time is that of
the slowest GPU. Writes ``several_<model>_<P>.json``, and with ``--overlap`` (`ParallelConfig`)
``several_<model>_<P>_overlap.json``. ``--tiny`` rehearses it on the CPU.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager
from benchmarks.engine.measure import (
    Row,
    error_row,
    milliseconds,
    relative_error,
    release,
    spread,
    wrong_rows,
)
from benchmarks.engine.parallel import slowest
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import enable, rainfusion_attention
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.parallel.spread import spread as share_tokens
from rainfusion_trt.routing import Routing, compile_blocks
from rainfusion_trt.routing.compiled import keep_order
from rainfusion_trt.routing.parallel import Attend, Ulysses
from rainfusion_trt.routing.site import Tokens

LAYERS = {"wan2.1-14b": 2, "hunyuanvideo": 1, "cogvideox-5b": 2}
ONE, ALL = "one GPU", "all GPUs"
WHOLE, OWN, EXCHANGE = "all heads, one GPU", "own heads", "exchange alone"
SHARED = "own heads and exchange"
NOTE = (
    "seeded random weights, blocks through torch.compile. One GPU and all of them in turn in one "
    "run, each time that of the slowest GPU, a third of three calls in a row; the relative error "
    "is against the forward on one GPU. Peak memory is what torch allocates in a forward beyond "
    "what was allocated before it"
)
OVERLAP = (
    "overlap: the heads of a GPU in two groups, of which one attends while the tokens of the other "
    "travel"
)
Run = Callable[[], Tensor]
_CALLS = 3  # of a timing, as steps follow each other
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    model: Annotated[str, typer.Option(help=f"Of {', '.join(LAYERS)}.")] = "wan2.1-14b",
    sparsity: Annotated[float, typer.Option(help="Of every block.")] = 0.8,
    method: Annotated[str, typer.Option(help="How attention chooses.")] = "piecewise",
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 7,
    overlap: Annotated[bool, typer.Option("--overlap", help="As ParallelConfig has it.")] = False,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with a tiny network.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Compare, time and write the file."""
    if model not in LAYERS:
        raise InvalidInputError(f"--model {model} is none of {', '.join(LAYERS)}")
    settings = AttentionSettings(method=method)  # type: ignore[arg-type]  # which checks it
    if not tiny:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo" if tiny else "nccl")
    try:
        if tiny:
            case = Case.standard(
                model, tiny=True, device="cpu", dtype=torch.float32, method=settings.method
            )
        else:
            case = Case.standard(model, layers=LAYERS[model], method=settings.method)
        rows = measure(case, sparsity, rounds, head_groups=2 if overlap else 1)
        if dist.get_rank() == 0:
            world = dist.get_world_size()
            name = f"several_{model}_{world}{'_overlap' if overlap else ''}"
            note = f"{world} processes; {f'{OVERLAP}; ' if overlap else ''}{NOTE}"
            write_result(name, rows, note=note, folder=output)
            for row in rows:
                print(row, flush=True)
    finally:
        dist.destroy_process_group()
    if bad := wrong_rows(rows):
        raise SystemExit(f"{len(bad)} results are wrong or missing: {bad}")


@torch.no_grad()
def measure(case: Case, sparsity: float, rounds: int, *, head_groups: int = 1) -> list[Row]:
    """All rows, the same on every process."""
    world = dist.get_world_size()
    mesh = init_device_mesh(case.device, (1, world), mesh_dim_names=("ring", "ulysses"))
    alone = Eager(case)
    together = alone.twin()
    routings: dict[str, Routing] = {}
    for name, eager in ((ONE, alone), (ALL, together)):
        routings[name] = enable(
            eager.transformer, sparsity=sparsity, model=case.model, method=case.method
        )
    share_tokens(routings[ALL], together.transformer, mesh, head_groups=head_groups)
    for routing in routings.values():
        compile_blocks(routing)
    if head_groups > 1:
        keep_order(routings[ALL])
    forwards: dict[str, Run] = {ONE: alone, ALL: together}
    answers = {name: run() for name, run in forwards.items()}
    error = slowest(torch.tensor(relative_error(answers[ALL], answers[ONE])))
    rows: list[Row] = [error_row(ALL, sparsity, ONE, error)]
    rows += [
        {"what": "routed", "failed": str(routing.report())}
        for routing in routings.values()
        if routing.routed != case.blocks
    ]
    rows += _peaks(forwards)
    times = _in_turn(forwards, rounds)
    rows += _times("time of one forward", times, sparsity)
    rows.append(_speed_up("forward", times[ONE], times[ALL]))
    attentions = _attentions(alone, routings[ONE], mesh, sparsity, head_groups)
    release()
    times = _in_turn(attentions, rounds)
    rows += _times("attention of one block", times, sparsity)
    rows.append(_speed_up("attention with planning", times[WHOLE], times[OWN]))
    rows.append(_speed_up("attention with planning and exchange", times[WHOLE], times[SHARED]))
    return [{"processes": world, **case.facts(), **row} for row in rows]


def _attentions(
    eager: Eager, routing: Routing, mesh: Any, sparsity: float, head_groups: int
) -> dict[str, Run]:
    """The attention of one block in parts, over normal q, k and v of the model's shape."""
    case = eager.case
    layout = case.model.layout(eager.transformer, case.model.forward_kwargs(eager.inputs))
    site = routing.sites[0].attention
    heads, size = int(site.heads), int(site.to_q.out_features) // int(site.heads)
    place = torch.device(case.device)
    generator = torch.Generator(place).manual_seed(0)
    shape = (case.batch, heads, eager.tokens, size)
    q, k, v = (
        torch.randn(shape, generator=generator, device=place, dtype=case.dtype) for _ in range(3)
    )

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rainfusion_attention(
            q,
            k,
            v,
            layout.grid,
            text=layout.text,
            sparsity=sparsity,
            method=case.method,
            kv_len=layout.kv_len,
        )

    def exchanged(attend: Attend) -> Tensor:
        def whole(*own: Tensor) -> Tensor:
            q, k, v = (x.transpose(1, 2) for x in own)
            return attend(q, k, v).transpose(1, 2)

        q, k, v = local
        return ulysses.attention(tokens, q, k, v, whole)

    group = mesh["ulysses"].get_group()
    ulysses = Ulysses(group, dist.get_world_size(), dist.get_rank(), head_groups)
    tokens = Tokens(layout.grid, layout.text, layout.text_tokens, layout.kv_len is not None)
    mine = sum(ulysses.sizes(n)[ulysses.rank] for n in (tokens.grid.numel(), tokens.text_tokens))
    own = [ulysses.part(x, dim=1) for x in (q, k, v)]
    local = tuple(x[:, :, :mine].transpose(1, 2).contiguous() for x in (q, k, v))
    return {
        WHOLE: partial(attend, q, k, v),
        OWN: partial(attend, *own),
        EXCHANGE: partial(exchanged, lambda q, _k, _v: q),
        SHARED: partial(exchanged, attend),
    }


def _in_turn(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each run on the slowest process, after one untimed call of each."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            dist.barrier()
            several = partial(_repeat, run)
            times[name].append(slowest(torch.tensor(milliseconds(several) / _CALLS)))
    return times


def _repeat(run: Run) -> None:
    for _ in range(_CALLS):
        run()


def _times(what: str, times: dict[str, list[float]], sparsity: float) -> list[Row]:
    return [
        {"what": what, "run": name, "sparsity": sparsity, **spread(values)}
        for name, values in times.items()
    ]


def _speed_up(run: str, one: list[float], several: list[float]) -> Row:
    ratio = statistics.median(one) / statistics.median(several)
    return {"what": "speed-up", "run": run, "times": round(ratio, 3)}


def _peaks(forwards: dict[str, Run]) -> list[Row]:
    """What a forward allocates beyond what is there before it, on the process with most."""
    if not torch.cuda.is_available():
        return []
    peaks = {}
    for name, run in forwards.items():
        release()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        peak = (torch.cuda.max_memory_allocated() - before) / 2**30
        peaks[name] = slowest(torch.tensor(peak))
    rows: list[Row] = [
        {"what": "peak memory less weights", "run": name, "gib": round(peak, 3)}
        for name, peak in peaks.items()
    ]
    share = round(peaks[ALL] / peaks[ONE], 3)
    return [*rows, {"what": "peak memory of one GPU's", "run": ALL, "share": share}]


if __name__ == "__main__":
    run_app(app, show_time=False)
