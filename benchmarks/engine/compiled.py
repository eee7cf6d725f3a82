"""torch.compile with and without RainFusion, on a few layers at full width.

    python scripts/bench_compile.py
    python scripts/bench_compile.py --tiny --compiler eager --output OUT

Four forwards of one network with seeded random weights, timed in turn in one run: diffusers' own
with cuDNN attention and with `enable(sparsity=0.5)`, each eager and compiled. Each also does ten
denoising steps, those with RainFusion at a sparsity that changes from step to step, in which
nothing may be compiled again. Writes ``compile_<model>.json`` whenever a part is done.
``--tiny`` rehearses it, on the CPU too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo
import typer
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager, kernel_row
from benchmarks.engine.kept import measured
from benchmarks.engine.measure import (
    TOLERANCE,
    Forward,
    MeasureOptions,
    Row,
    error_row,
    failed_row,
    milliseconds,
    relative_error,
    release,
    time_in_turn,
    time_limit,
    wrong_rows,
)
from benchmarks.record import RESULTS
from rainfusion_trt import enable
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.routing import Routing

LAYERS = {"wan2.1-14b": 2, "hunyuanvideo": 1, "cogvideox-5b": 2}
SPARSITY = 0.5
STEPS = 10
EAGER = "eager, cuDNN attention"
EAGER_SPARSE = "eager, RainFusion"
COMPILED = "torch.compile, cuDNN attention"
COMPILED_SPARSE = "torch.compile, RainFusion"
NOTE = (
    "seeded random weights. The four forwards have the same weights and inputs and are timed in "
    "turn. Where a model pads its text, dense attention leaves the padding out instead of masking "
    "it. Peak memory is what torch allocates at most in a forward, weights included, after the "
    "first; graphs are what torch.compile made in the first forward and in ten steps after it"
)
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Run:
    """One of the four.

    Attributes
    ----------
    forward
        With the case's inputs.
    routing
        Of its transformer; None where attention is dense.
    """

    forward: Callable[..., Tensor]
    routing: Routing | None


def measure(case: Case, save: Callable[[list[Row]], None], options: MeasureOptions) -> list[Row]:
    """All rows of a case; `save` gets those so far whenever a part is done."""
    torch._dynamo.reset()
    eager = Eager(case)
    eager.settle()
    padded = eager.valid != eager.tokens
    routed = eager.twin()
    routing = enable(routed.transformer, sparsity=SPARSITY, model=case.model, method=case.method)
    compiled: Any = partial(torch.compile, backend=options.compiler, dynamic=False)
    dense = eager.without_padding if padded else eager
    candidates = {
        EAGER: Run(dense, None),
        EAGER_SPARSE: Run(routed, routing),
        COMPILED: Run(partial(dense, module=compiled(eager.transformer)), None),
        COMPILED_SPARSE: Run(partial(routed, module=compiled(routed.transformer)), routing),
    }
    rows: list[Row] = [
        {"what": "attention length", "tokens": eager.tokens, "tokens_without_padding": eager.valid},
    ]
    runs: dict[str, Run] = {}
    outputs: dict[str, Tensor] = {}
    for name, run in candidates.items():
        release()
        try:
            with time_limit(options.seconds):
                rows += _first(name, run, outputs)
                rows += _steps(name, run, case.blocks)
        except Exception as error:  # whatever a compiler raises: the row says it
            rows.append(failed_row("first forward", name, error))
        else:
            runs[name] = run
        save(rows)
    rows.append(kernel_row(EAGER, runs[EAGER].forward, eager))
    rows += _compared(outputs)
    save(rows)
    timed: dict[tuple[str, float], Forward] = {
        (name, 0.0 if run.routing is None else SPARSITY): run.forward for name, run in runs.items()
    }
    rows += time_in_turn(timed, options.rounds, case.blocks)
    rows += _shares(rows)
    save(rows)
    return rows


def _first(name: str, run: Run, outputs: dict[str, Tensor]) -> list[Row]:
    """The first forward, which compiles, and the memory of the one after it."""
    before, breaks = _graphs(), _breaks()
    outputs_of_run: list[Tensor] = []
    milli = milliseconds(lambda: outputs_of_run.append(run.forward()))
    outputs[name] = outputs_of_run.pop()
    row: Row = {"what": "first forward", "run": name, "seconds": round(milli / 1e3, 1)}
    row["graphs"] = _graphs() - before
    row["graph_breaks"] = _breaks() - breaks
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        run.forward()
        torch.cuda.synchronize()
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return [row]


def _steps(name: str, run: Run, blocks: int) -> list[Row]:
    """Denoising steps with another timestep and sparsity in each."""
    before, breaks = _graphs(), _breaks()
    row: Row = {"what": f"{STEPS} steps", "run": name}
    for step in range(STEPS):
        with _sparsity(run.routing, 0.0 if step < 2 else 0.08 * step), _at(run.forward, step):
            run.forward()
        if run.routing is not None and run.routing.routed != blocks:
            row["failed"] = f"step {step}: {run.routing.report()}"
    row["graphs"] = _graphs() - before
    row["graph_breaks"] = _breaks() - breaks
    if row["graphs"] or row["graph_breaks"]:
        row["failed"] = "compiled again"
    return [row]


def _graphs() -> int:
    return counters["stats"]["unique_graphs"]


def _breaks() -> int:
    return sum(counters["graph_break"].values())


@contextmanager
def _sparsity(routing: Routing | None, value: float) -> Iterator[None]:
    """The sparsity of one step, then the benchmark's again."""
    if routing is not None:
        routing.sparsity = value
    yield
    if routing is not None:
        routing.sparsity = SPARSITY


@contextmanager
def _at(forward: Any, step: int) -> Iterator[None]:
    """The inputs of a forward at a later timestep, in tensors of their own as in a pipeline."""
    function = getattr(forward, "func", forward)
    owner: Eager = getattr(function, "__self__", function)
    inputs = owner.inputs
    owner.inputs = {**inputs, "timestep": inputs["timestep"] - 40 * step}
    try:
        yield
    finally:
        owner.inputs = inputs


def _compared(outputs: dict[str, Tensor]) -> list[Row]:
    """Compiled against eager: both round to bfloat16, in other places."""
    pairs = ((COMPILED, EAGER, 0.0), (COMPILED_SPARSE, EAGER_SPARSE, SPARSITY))
    return [
        error_row(run, sparsity, against, relative_error(outputs[run], outputs[against]))
        for run, against, sparsity in pairs
        if run in outputs and against in outputs
    ]


def _shares(rows: list[Row]) -> list[Row]:
    """Compiled with RainFusion as a share of each of the others."""
    times = {row["run"]: row["ms"] for row in rows if row["what"] == "time of one forward"}
    if COMPILED_SPARSE not in times:
        return []
    return [
        {
            "what": "share of the time",
            "run": COMPILED_SPARSE,
            "against": name,
            "share": round(times[COMPILED_SPARSE] / time, 3),
        }
        for name, time in times.items()
        if name != COMPILED_SPARSE
    ]


@app.command()
def main(
    models: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(LAYERS)} (all); repeatable.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 7,
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "inductor",
    compile_seconds: Annotated[float, typer.Option(help="When to give up on a run.")] = 90.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with tiny networks.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the JSON files.")] = None,
) -> None:
    """Compile, check and time."""
    if tiny and output is None:
        raise InvalidInputError("--tiny measures nothing real: give --output for its files")
    for name in models or ():
        if name not in LAYERS:
            raise InvalidInputError(f"model {name!r} is none of {', '.join(LAYERS)}")
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu or not tiny else "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    options = MeasureOptions(rounds=rounds, compiler=compiler, seconds=compile_seconds)
    wrong: list[Row] = []
    for name in models or LAYERS:
        case = Case.standard(name, layers=LAYERS[name], tiny=tiny, device=device, dtype=dtype)
        name = f"compile_{case.model.name}"
        run = partial(measure, case, options=options)
        wrong += wrong_rows(
            measured(name, case, run, file=name, note=NOTE, output=output or RESULTS)
        )
    if wrong:
        raise SystemExit(f"{len(wrong)} rows failed or are not below {TOLERANCE:.0e}: {wrong}")


if __name__ == "__main__":
    try:
        app()
    except RainFusionError as error:
        raise SystemExit(f"error: {error}") from error
