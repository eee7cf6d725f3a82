"""A few layers of a model at full width: engine against eager and compiled diffusers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager, kernel_row
from benchmarks.engine.engines import Engine, load, prepare
from benchmarks.engine.measure import (
    Forward,
    Row,
    error_row,
    failed_row,
    memory_rows,
    relative_error,
    release,
    time_in_turn,
    time_limit,
    used_gib,
)

EAGER = "eager, cuDNN attention"
MASKED = "eager, cuDNN attention, padding masked"
COMPILED = "torch.compile, cuDNN attention"
OPERATOR = "torch operator"
ENGINE = "engine"
SPARSITIES = (0.5, 0.64)
CHECKED = 0.5  # where the engine is held against the operator
# Attention in float32 runs at a fiftieth of the speed: only where it is done in a second or two.
_FLOAT32_FLOPS = 5e13

Save = Callable[[list[Row]], None]


@dataclass(frozen=True)
class Options:
    """How to measure.

    Attributes
    ----------
    rounds
        Timings of each run.
    compiler
        Backend of torch.compile.
    compile_seconds
        When to give up on it.
    target
        Of the engine; None runs the file in ONNX Runtime, whose attention is dense.
    keep
        Leave the exported file and the engine.
    """

    rounds: int = 5
    compiler: str = "inductor"
    compile_seconds: float = 180.0
    target: str | None = "native"
    keep: bool = False


@dataclass
class Rivals:
    """What the engine is held against.

    Attributes
    ----------
    forwards
        Warm, by name; those that failed are not among them.
    outputs
        Of each.
    rows
        Kernels, memory, and what failed.
    """

    forwards: dict[str, Forward] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def measure(case: Case, folder: Path, options: Options, save: Save) -> list[Row]:
    """All rows of a case; `save` is called with those there are whenever a part is done."""
    before = used_gib()
    eager = Eager(case)
    prepared = prepare(case, folder, transformer=eager.transformer, target=options.target)
    release()
    rows = [_tokens_row(eager), *prepared.rows()]
    rivals = eager_rivals(eager, before)
    rows += rivals.rows
    save(rows)
    release()
    before = used_gib()
    engine = Engine(load(prepared, case), eager.inputs)
    engine(CHECKED)
    rows += memory_rows(ENGINE, before)
    rows += compare(eager, rivals, engine)
    save(rows)
    compiled = compiled_rival(eager, rivals.outputs[EAGER], options)
    rivals.forwards |= compiled.forwards
    rows += compiled.rows
    save(rows)
    release()
    rows += time_in_turn(_timed(eager, rivals, engine), options.rounds, case.blocks)
    save(rows)
    rows += rounding(eager, rivals, engine)
    save(rows)
    engine.backend.close()
    if not options.keep:
        prepared.remove()
    return rows


def _tokens_row(eager: Eager) -> Row:
    row = {"what": "attention length", "tokens": eager.tokens, "blocks": eager.case.blocks}
    if eager.valid != eager.tokens:
        row["tokens_without_padding"] = eager.valid
    return row


def eager_rivals(eager: Eager, before: float) -> Rivals:
    """diffusers' forward; where it masks padding, also one that leaves the padding out.

    The latter is the faster rival, so it has the plain name.

    Raises
    ------
    Exception
        Whatever that one raises: without it there is nothing to hold the engine against.
    """
    rivals = Rivals()
    padded = eager.valid != eager.tokens
    eager.settle()
    _add(rivals, eager, EAGER, eager.without_padding if padded else eager)
    rivals.rows += memory_rows(EAGER, before)
    if padded:
        try:
            _add(rivals, eager, MASKED, eager)
        except RuntimeError as error:  # cuDNN may refuse the mask, or run out of memory over it
            rivals.rows.append(failed_row("one forward", MASKED, error))
            release()
    return rivals


def _add(rivals: Rivals, eager: Eager, name: str, forward: Forward) -> None:
    rivals.outputs[name] = forward()
    rivals.rows.append(kernel_row(name, forward, eager))
    rivals.forwards[name] = forward


def compiled_rival(eager: Eager, wanted: Tensor, options: Options) -> Rivals:
    """torch.compile's forward with padding left out, or a row that says why there is none."""
    rivals = Rivals()
    module = torch.compile(eager.transformer, backend=options.compiler, dynamic=False)
    padded = eager.valid != eager.tokens
    forward = partial(eager.without_padding if padded else eager, module=module)
    try:
        with time_limit(options.compile_seconds):
            _add(rivals, eager, COMPILED, forward)
    except Exception as error:  # whatever the compiler raises: the row says it
        release()
        return Rivals(rows=[failed_row("torch.compile", COMPILED, error)])
    error = relative_error(rivals.outputs.pop(COMPILED), wanted)
    rivals.rows.append(error_row(COMPILED, 0.0, EAGER, error))
    return rivals


def compare(eager: Eager, rivals: Rivals, engine: Engine) -> list[Row]:
    """One forward call of each."""
    dense = engine(0.0)
    rows = [
        error_row(ENGINE, 0.0, name, relative_error(dense, out))
        for name, out in rivals.outputs.items()
    ]
    operator = eager.routed(0.0)
    rows.append(error_row(OPERATOR, 0.0, EAGER, relative_error(operator, rivals.outputs[EAGER])))
    rows.append(error_row(ENGINE, 0.0, OPERATOR, relative_error(dense, operator)))
    if MASKED in rivals.outputs:
        error = relative_error(rivals.outputs[MASKED], rivals.outputs[EAGER])
        rows.append(error_row(MASKED, 0.0, EAGER, error))
    operator = eager.routed(CHECKED)
    if engine.sparse:
        sparse = engine(CHECKED)
        rows.append(error_row(ENGINE, CHECKED, OPERATOR, relative_error(sparse, operator)))
        # No check: what sparse attention leaves out of this network of random weights.
        left_out = {"what": "left out", "run": ENGINE, "sparsity": CHECKED, "against": EAGER}
        left_out["difference"] = relative_error(sparse, rivals.outputs[EAGER])
        rows.append(left_out)
    else:
        rows.append(
            {
                "what": "one forward",
                "run": ENGINE,
                "sparsity": CHECKED,
                "against": OPERATOR,
                "not_run": f"{engine.backend.name} has dense attention only",
            }
        )
    return rows


def _timed(eager: Eager, rivals: Rivals, engine: Engine) -> dict[tuple[str, float], Forward]:
    """All that is timed in turn; warmed here where it has not run yet."""
    runs: dict[tuple[str, float], Forward] = {
        (name, 0.0): forward for name, forward in rivals.forwards.items()
    }
    for s in (0.0, *SPARSITIES):
        if engine.sparse or s == 0.0:
            runs[ENGINE, s] = partial(engine, s)
        if s in (0.0, CHECKED):
            runs[OPERATOR, s] = partial(eager.routed, s)
    for run in runs.values():
        run()
    return runs


def rounding(eager: Eager, rivals: Rivals, engine: Engine) -> list[Row]:
    """What bfloat16 costs eager and the engine, where a forward in float32 is cheap."""
    config = eager.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    flops = 4 * eager.case.batch * eager.case.blocks * eager.tokens**2 * width
    outputs = {EAGER: rivals.outputs[EAGER], ENGINE: engine(0.0)}
    if eager.case.dtype is torch.float32 or flops > _FLOAT32_FLOPS:
        return []
    try:
        wanted = eager.float32()
    except RuntimeError as error:
        return [failed_row("rounding", EAGER, error)]
    finally:
        release()
    return [
        {
            "what": "rounding",
            "run": name,
            "sparsity": 0.0,
            "against": "eager in float32",
            "error_to_float32": relative_error(out, wanted),
        }
        for name, out in outputs.items()
    ]
