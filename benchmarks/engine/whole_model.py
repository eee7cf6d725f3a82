"""A complete model: one denoising step by everything that makes it faster, one thing at a time.

    python -m benchmarks.engine.whole_model hunyuanvideo wan2.1-14b [--steps 50 --skipped FILE]
    python -m benchmarks.engine.whole_model hunyuanvideo --forwards 8bit --steps 50 --name clip
    python -m benchmarks.engine.whole_model wan2.1-14b --tiny --compiler eager --output OUT

The network has seeded random weights, made on the GPU. The forwards, which share them, are:
diffusers' own with cuDNN attention, eager and compiled; compiled with RainFusion at s = 0.8; that
with attention in 8 bits; and that with the weights of the feed-forward networks in FP8 by torchao,
attention's projections staying bfloat16. Blocks are compiled, not the whole, as one graph of sixty
blocks takes minutes. All are timed in turn. ``--steps`` then runs so many steps of the fastest with
bfloat16 weights, a tenth of them dense, and once more without those that a step cache skips.
``--skipped`` is a JSON list of these: with random weights a cache would find its own, which mean
nothing. The dense forwards' time of so many steps is a multiple of one, and the row says so.
A clip takes minutes: ``--forwards`` and ``--no-every-step`` leave parts to other runs, whose files
``--name`` tells apart. Writes ``whole_<model>[_<name>].json`` whenever a part is done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import torch._dynamo
import typer
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager
from benchmarks.engine.ffns import quantise_ffns
from benchmarks.engine.kept import Save, measured
from benchmarks.engine.measure import (
    MeasureOptions,
    Row,
    failed_row,
    milliseconds,
    release,
    synchronize,
    time_in_turn,
    time_limit,
)
from benchmarks.record import RESULTS
from rainfusion_trt import enable
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.routing import Routing

SPARSITY = 0.8
DENSE_SHARE = 0.1  # of the steps, the first ones
MOST_SKIPPED = 0.4
EAGER = "eager, cuDNN attention"
COMPILED = "blocks compiled, cuDNN attention"
SPARSE = "blocks compiled, RainFusion"
EIGHT = "blocks compiled, RainFusion in 8 bits"
FFN = "blocks compiled, RainFusion in 8 bits, FFNs in FP8"
FORWARDS = {"eager": EAGER, "compiled": COMPILED, "sparse": SPARSE, "8bit": EIGHT, "ffns": FFN}
NOTE = (
    "seeded random weights; forwards share them and are timed in turn. A denoising step is one "
    "forward where the model has its guidance inside, else as many as guidance needs. Peak memory "
    "is what torch allocates at most in a forward, the weights of all that are measured included"
)
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """Options of a measurement of whole clips.

    Attributes
    ----------
    steps
        Denoising steps; 0 for none.
    skipped
        Those that a cache skips.
    every_step
        Run a clip without a step cache as well.
    forwards
        Which forwards, of the values of `FORWARDS`. That of feed-forward networks in FP8 takes
        minutes to compile.
    """

    steps: int = 0
    skipped: tuple[int, ...] | None = None
    every_step: bool = True
    forwards: frozenset[str] = frozenset(FORWARDS.values())


@dataclass
class Contender:
    """One of the forwards.

    Attributes
    ----------
    owner
        Inputs, and the transformer.
    forward
        With these inputs.
    routing
        Of the transformer; None where attention is dense.
    """

    owner: Eager
    forward: Callable[[], Tensor]
    routing: Routing | None = None


def measure(case: Case, options: Options, save: Save) -> list[Row]:
    """All rows of a case; `save` gets those so far whenever a part is done."""
    torch._dynamo.reset()
    eager = Eager(case)
    eager.settle()
    weights = sum(p.numel() for p in eager.transformer.parameters())
    rows: list[Row] = [
        {"what": "network", "parameters": weights, "blocks": case.blocks, "tokens": eager.tokens}
    ]
    ready: dict[str, Contender] = {}
    for name, make in _makers(eager, options.compiler).items():
        if name not in options.forwards:
            continue
        release()
        try:
            with time_limit(options.seconds):
                contender = make()
                rows.append(_first(name, contender))
        except Exception as error:  # whatever a compiler raises: the row says it
            rows.append(failed_row("first forward", name, error))
        else:
            ready[name] = contender
        save(rows)
    release()
    runs = {(name, _sparsity(one)): one.forward for name, one in ready.items()}
    rows += time_in_turn(
        runs, options.rounds, case.blocks, save=lambda times: save([*rows, *times])
    )
    rows += _speed_ups(rows)
    save(rows)
    if options.steps:
        rows += _clips(ready, rows, options)
        save(rows)
    return rows


def _makers(eager: Eager, compiler: str) -> dict[str, Callable[[], Contender]]:
    """By name, what makes each forward; in this order the last one's weights come last."""
    padded = eager.valid != eager.tokens

    def dense(compiled: bool) -> Contender:
        one = eager.twin() if compiled else eager
        if compiled:
            _compile_blocks(one.transformer, compiler)
        return Contender(one, one.without_padding if padded else one)

    def sparse(precision: Precision, fp8: bool = False) -> Contender:
        one = eager.twin()
        if fp8:
            quantise_ffns(one.transformer)
        case = eager.case
        routing = enable(
            one.transformer,
            sparsity=SPARSITY,
            model=case.model,
            method=case.method,
            precision=precision,
        )
        _compile_blocks(one.transformer, compiler)
        return Contender(one, one, routing)

    return {
        EAGER: partial(dense, compiled=False),
        COMPILED: partial(dense, compiled=True),
        SPARSE: partial(sparse, "16bit"),
        EIGHT: partial(sparse, "8bit"),
        FFN: partial(sparse, "8bit", fp8=True),
    }


def _compile_blocks(transformer: nn.Module, compiler: str) -> None:
    transformer.compile_repeated_blocks(  # type: ignore[operator]
        backend=compiler, fullgraph=True, dynamic=False
    )


def _first(name: str, contender: Contender) -> Row:
    """The first forward, which compiles, and time and memory of one after it."""
    before = counters["stats"]["unique_graphs"]
    seconds = milliseconds(contender.forward) / 1e3
    row: Row = {"what": "first forward", "run": name, "seconds": round(seconds, 1)}
    row["graphs"] = counters["stats"]["unique_graphs"] - before
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    row["second_ms"] = round(milliseconds(contender.forward), 2)
    if torch.cuda.is_available():
        row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    if contender.routing is not None:
        routed, blocks = contender.routing.routed, contender.owner.case.blocks
        row["precision"] = contender.routing.settings.precision
        if routed != blocks:
            row["failed"] = f"{routed} of {blocks} attentions are routed"
    return row


def _sparsity(contender: Contender) -> float:
    return 0.0 if contender.routing is None else SPARSITY


def _times(rows: list[Row]) -> dict[str, float]:
    return {row["run"]: row["ms"] for row in rows if row["what"] == "time of one forward"}


def _speed_ups(rows: list[Row]) -> list[Row]:
    """Of all forwards over the dense ones."""
    times = _times(rows)
    return [
        {"what": "speed-up", "run": name, "against": base, "times": round(times[base] / ms, 3)}
        for name, ms in times.items()
        for base in (EAGER, COMPILED)
        if base in times and name != base
    ]


def _clips(ready: dict[str, Contender], rows: list[Row], options: Options) -> list[Row]:
    """Seconds of all steps: dense ones by their median, the others run."""
    what, steps = f"{options.steps} steps", options.steps
    made: list[Row] = [
        {
            "what": what,
            "run": name,
            "seconds": round(ms * steps / 1e3, 1),
            "how": f"{steps} times the median of {options.rounds} forwards",
        }
        for name, ms in _times(rows).items()
        if _sparsity(ready[name]) == 0.0
    ]
    if EIGHT not in ready:
        return [*made, {"what": what, "run": EIGHT, "not_run": "its first forward failed"}]
    patterns: dict[str, Collection[int]] = {EIGHT: ()} if options.every_step else {}
    if options.skipped is not None:
        patterns[f"{EIGHT}, step cache"] = options.skipped
    for name, skipped in patterns.items():
        seconds = denoise(ready[EIGHT], steps, skipped)
        row: Row = {"what": what, "run": name, "seconds": round(seconds, 1), "how": "run"}
        made.append({**row, "dense_steps": _dense_steps(steps), "skipped": sorted(skipped)})
    longest = {row["run"]: row["seconds"] for row in made}
    for row in made:
        if EAGER in longest and row["run"] != EAGER:
            row["times_eager"] = round(longest[EAGER] / row["seconds"], 3)
    return made


def _dense_steps(steps: int) -> int:
    return round(DENSE_SHARE * steps)


def denoise(contender: Contender, steps: int, skipped: Collection[int]) -> float:
    """Seconds of the steps of one clip: forwards, or the last output again, and Euler's update."""
    assert contender.routing is not None
    owner = contender.owner
    inputs = owner.inputs
    name = "hidden_states"
    clip = inputs[name].clone()
    last: Tensor | None = None
    synchronize()
    start = time.perf_counter()
    try:
        for step in range(steps):
            contender.routing.sparsity = 0.0 if step < _dense_steps(steps) else SPARSITY
            if last is None or step not in skipped:
                owner.inputs = {**inputs, name: clip}
                last = contender.forward()
            clip[:, : last.shape[1]] -= last / steps
        synchronize()
    finally:
        owner.inputs = inputs
        contender.routing.sparsity = SPARSITY
    return time.perf_counter() - start


def skipped_steps(file: Path | None, steps: int) -> tuple[int, ...] | None:
    """The steps of a file, checked.

    Raises
    ------
    InvalidInputError
        It is no list of steps, or they are too many.
    """
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"--skipped {file}: cannot be read as JSON ({error})") from error
    inner = range(1, steps - 1)
    if not isinstance(found, list) or not all(type(i) is int and i in inner for i in found):
        raise InvalidInputError(
            f"--skipped {file}: must be a list of steps from 1 to {steps - 2}; the first and the "
            "last always run"
        )
    if len(set(found)) > MOST_SKIPPED * steps:
        raise InvalidInputError(
            f"--skipped {file}: {len(set(found))} of {steps} steps are more than {MOST_SKIPPED:.0%}"
        )
    return tuple(sorted(set(found)))


@app.command()
def main(
    models: Annotated[list[str], typer.Argument(help="Names of the registry.")],
    layers: Annotated[int | None, typer.Option(help="Blocks of each kind; all if none.")] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each forward.", min=1)] = 3,
    steps: Annotated[int, typer.Option(help="Denoising steps; 0 for none.", min=0)] = 0,
    skipped: Annotated[
        Path | None, typer.Option(help="JSON list of the steps that a step cache skips.")
    ] = None,
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "inductor",
    seconds: Annotated[float, typer.Option(help="When to give up on a first forward.")] = 180.0,
    every_step: Annotated[
        bool, typer.Option(help="Run the steps without the step cache as well.")
    ] = True,
    forwards: Annotated[
        list[str], typer.Option(help=f"Of {', '.join(FORWARDS)}; once for each.")
    ] = list(FORWARDS),  # noqa: B006  # typer's way to say it
    name: Annotated[str | None, typer.Option(help="Ends the name of the file.")] = None,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with tiny networks.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the JSON files.")] = None,
) -> None:
    """Compile, check and time."""
    if tiny and output is None:
        raise InvalidInputError("--tiny measures nothing real: give --output for its files")
    if skipped is not None and not steps:
        raise InvalidInputError("--skipped needs --steps, how many steps there are")
    if not every_step and skipped is None:
        raise InvalidInputError("--no-every-step leaves no steps to run: give --skipped")
    if unknown := [one for one in forwards if one not in FORWARDS]:
        raise InvalidInputError(f"--forwards {unknown[0]}: none of {', '.join(FORWARDS)}")
    options = Options(
        rounds=rounds,
        compiler=compiler,
        seconds=seconds,
        steps=steps,
        skipped=skipped_steps(skipped, steps),
        every_step=every_step,
        forwards=frozenset(FORWARDS[one] for one in forwards),
    )
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu or not tiny else "cpu"
    dtype = torch.bfloat16 if gpu else torch.float32
    settings: dict[str, Any] = {"tiny": tiny, "device": device, "dtype": dtype}
    cases = [Case.standard(name, layers=layers, **settings) for name in models]
    failed: list[Row] = []
    for case in cases:
        file = "_".join(["whole", case.model.name, *([name] if name else [])])
        run = partial(measure, case, options)
        rows = measured(file, case, run, file=file, note=NOTE, output=output or RESULTS)
        failed += [row for row in rows if "failed" in row or "not_run" in row]
    if failed:
        raise SystemExit(f"{len(failed)} rows failed: {failed}")


if __name__ == "__main__":
    try:
        app()
    except RainFusionError as error:
        raise SystemExit(f"error: {error}") from error
