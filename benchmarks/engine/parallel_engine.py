"""An engine on several GPUs: one clip's tokens shared, exchanged inside the engine by NCCL.

    torchrun --nproc-per-node 2 -m benchmarks.engine.parallel_engine wan2.1-14b --layers 2
    torchrun --nproc-per-node 1 -m benchmarks.engine.parallel_engine wan2.1-14b --tiny --output OUT

A few layers with seeded random weights at the model's standard size. One export and two engines of
it, for one GPU and for all. The attention of a layer alone comes first: on all GPUs with its
exchanges, the same without them, and whole on one GPU, whose answer has to be that of all to the
bit. Then a forward of either engine, launched and as a captured graph, in turn; the time on several
GPUs is that of the slowest. Writes ``parallel_engine_<model>_<P>.json``. ``--tiny`` rehearses it
in ONNX Runtime, with one process.
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

from benchmarks.engine.cases import Case
from benchmarks.engine.engines import Engine, fixed_recipe
from benchmarks.engine.measure import Row, error_row, milliseconds, relative_error, spread
from benchmarks.engine.measure import wrong_rows as wrong
from benchmarks.engine.shared_operator import operator_rows
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import ParallelConfig, build_engine
from rainfusion_trt.engine import EngineRecipe
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.export import export_model
from rainfusion_trt.graph_file import PART_INPUT
from rainfusion_trt.operator.native import load_library
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.parallel.exchange import Exchange
from rainfusion_trt.parallel.team import Team
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.denoiser import complete_config
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

NOTE = (
    "seeded random weights. One GPU, then all of them, in one run on one host; relative errors "
    "against the same forward on one GPU. The workspace is all that a forward needs beside "
    "weights, inputs and outputs"
)
Times = dict[tuple[str, float], list[float]]  # milliseconds by run and sparsity
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    model: Annotated[str, typer.Argument(help="Model name.")],
    layers: Annotated[int | None, typer.Option(help="Blocks of each kind.")] = None,
    sparsity: Annotated[float, typer.Option(help="Of the sparse forwards.")] = 0.8,
    method: Annotated[str, typer.Option(help="Method of the graph.")] = "piecewise",
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 7,
    folder: Annotated[Path, typer.Option(help="Folder for file and engines.")] = Path(
        "/tmp/shared"
    ),
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with a tiny network.")] = False,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Prepare, compare, time and write the file."""
    device = "cpu" if tiny else "cuda"
    dtype = torch.float32 if tiny else torch.bfloat16
    world = 1 if tiny else int(os.environ["WORLD_SIZE"])
    case = Case.standard(model, layers=layers, tiny=tiny, device=device, dtype=dtype)
    settings = AttentionSettings(method=method)  # type: ignore[arg-type]
    if tiny:
        rows = measure(case, settings, sparsity, rounds, folder, team=None)
    else:
        config = ParallelConfig(ulysses=world, timeout=500.0)
        team = Team.join(config, None)
        with team.together():
            rows = measure(case, settings, sparsity, rounds, folder, team)
        if not team.first:
            return
    write_result(f"parallel_engine_{model}_{world}", rows, note=NOTE, folder=output)
    for row in rows:
        print(row, flush=True)
    if bad := wrong(rows):
        raise SystemExit(f"{len(bad)} results are wrong or missing: {bad}")


def measure(
    case: Case,
    settings: AttentionSettings,
    sparsity: float,
    rounds: int,
    folder: Path,
    team: Team | None,
) -> list[Row]:
    """All rows; those of the first process are complete."""
    made, inputs, tokens = prepare(case, settings, folder, team)
    levels = (0.0, sparsity)
    wanted: dict[float, Tensor] = {}
    times: Times = {}
    rows: list[Row] = []
    if team is None:
        for name, path in made.items():
            run = Shared(OnnxRuntimeBackend(path), inputs, tokens)
            rows += forward_rows(
                f"{name}, {_how(False)}", run, levels, wanted, times, rounds, milliseconds
            )
        return [{"gpus": 1, **case.facts(), **row} for row in [*rows, *time_rows(times)]]
    from rainfusion_trt.runtime.tensorrt import TensorRTBackend

    for graph in (False, True):
        if team.first:
            one = Shared(TensorRTBackend(made["one"], team.device, None, graph), inputs, tokens)
            name = f"one, {_how(graph)}"
            rows += forward_rows(name, one, levels, wanted, times, rounds, milliseconds)
            one.backend.close()
        team.meet()
    exchange = Exchange(team, load_library())
    share = exchange.share
    rows += operator_rows(team, exchange, case, settings, sparsity, rounds)
    own = (tokens + share.parts - 1 - share.rank) // share.parts
    for graph in (False, True):
        shared = Shared(TensorRTBackend(made["all"], team.device, None, graph), inputs, own)
        with exchange.call():  # a process that fails ends the others in their first exchange
            shared(0.0)
        exchange.finish()
        clock = partial(slowest, team)
        name = f"all, {_how(graph)}"
        rows += forward_rows(name, shared, levels, wanted, times, rounds, clock)
        shared.backend.close()
    exchange.close()
    facts = {"gpus": team.world, "method": settings.method, **case.facts()}
    return [{**facts, **row} for row in [*rows, *time_rows(times)]]


def forward_rows(
    name: str,
    run: Shared,
    levels: tuple[float, ...],
    wanted: dict[float, Tensor],
    times: Times,
    rounds: int,
    clock: Callable[[Callable[[], object]], float],
) -> list[Row]:
    """Errors of an engine against the first one's answers, and its workspace; fills `times`."""
    rows: list[Row] = []
    for s in levels:
        answer = run(s)
        if s in wanted:  # the first process has them
            error = relative_error(answer, wanted[s])
            equal = bool(torch.equal(answer, wanted[s]))
            rows.append({**error_row(name, s, "one, launched", error), "equal": equal})
        wanted.setdefault(s, answer)
        times[name, s] = [clock(partial(run, s)) for _ in range(rounds)]
    workspace = getattr(run.backend, "_workspace", None)
    if workspace is not None:
        gib = round(workspace.numel() / 2**30, 3)
        rows.append({"what": "workspace", "run": name, "gib": gib})
    return rows


class Shared(Engine):
    """A graph whose part, if it has one, has so many tokens."""

    def __init__(self, backend: Backend, inputs: dict[str, Tensor], part: int) -> None:
        shared = PART_INPUT in backend.inputs
        parts = {PART_INPUT: torch.zeros(part, device=backend.device)} if shared else {}
        super().__init__(backend, {**inputs, **parts})


def prepare(
    case: Case, settings: AttentionSettings, folder: Path, team: Team | None
) -> tuple[dict[str, Path], dict[str, Tensor], int]:
    """The first process's engines (files without a team) in all; the inputs, and the tokens."""
    files = {name: folder / case.model.name / f"{name}.onnx" for name in ("one", "all")}
    made = files if team is None else {n: file.with_suffix(".engine") for n, file in files.items()}
    config = complete_config(case.model, case.config)
    tokens = case.model.extents(config, case.size, case.batch)["video_tokens"]
    device = "cpu" if team is None else team.device
    inputs = case.model.drawn_inputs(
        config, case.size, batch=case.batch, dtype=case.dtype, device=device, seed=1
    )
    if team is None or team.first:
        export(case, settings, files)
    if team is None:
        return made, inputs, tokens
    if team.first:
        torch.cuda.empty_cache()
        for name, gpus in (("one", None), ("all", team.world)):
            recipe = fixed_recipe(case) if gpus is None else sized(case)
            build_engine(files[name], recipe=recipe, output=made[name], gpus=gpus)
    team.meet()
    return made, inputs, tokens


def export(case: Case, settings: AttentionSettings, files: dict[str, Path]) -> None:
    """Write the graphs that are not there."""
    missing = {name: file for name, file in files.items() if not file.is_file()}
    transformer = case.transformer() if missing else None
    for name, file in missing.items():
        assert transformer is not None
        file.parent.mkdir(parents=True, exist_ok=True)
        export_model(
            case.model,
            transformer,
            case.size,
            output=file,
            batch=case.batch,
            settings=settings,
            parallel=name == "all",
        )


def sized(case: Case) -> EngineRecipe:
    """The recipe of the case's only size."""
    clip = {"frames": case.size.frames, "height": case.size.height, "width": case.size.width}
    recipe = fixed_recipe(case).model_dump(mode="json")
    return EngineRecipe.model_validate({**recipe, "sizes": {"clip": {**clip, "batch": case.batch}}})


def slowest(team: Team, run: Callable[[], object]) -> float:
    """Milliseconds of the slowest process."""
    team.meet()
    return most(team, milliseconds(run))


def most(team: Team, value: float) -> float:
    """The largest of all processes."""
    values: list[Any] = [None] * team.world
    dist.all_gather_object(values, value)
    return max(values)


def time_rows(times: Times) -> list[Row]:
    """Times, and how often faster all GPUs are than one."""
    rows: list[Row] = []
    for (name, s), values in times.items():
        row: Row = {"what": "time of one forward", "run": name, "sparsity": s}
        rows.append({**row, **spread(values)})
    for name, s in times:
        run, how = name.split(", ")
        alone = times.get((f"one, {how}", s))
        if run == "all" and alone is not None:
            ratio = statistics.median(alone) / statistics.median(times[name, s])
            rows.append({"what": "speed-up", "run": how, "sparsity": s, "times": round(ratio, 3)})
    return rows


def _how(graph: bool) -> str:
    return "captured" if graph else "launched"


if __name__ == "__main__":
    try:
        app()
    except RainFusionError as error:
        raise SystemExit(f"error: {error}") from error
