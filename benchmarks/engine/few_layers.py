"""Compare a few layers at full width: engine, eager, compiled, and compiled with RainFusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from benchmarks.engine.cases import Case
from benchmarks.engine.compiled import COMPILED_SPARSE
from benchmarks.engine.eager import Eager, kernel_row
from benchmarks.engine.engines import Engine, load, prepare
from benchmarks.engine.kept import Save
from benchmarks.engine.measure import (
    Forward,
    MeasureOptions,
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
from rainfusion_trt import enable

EAGER = "eager, cuDNN attention"
MASKED = "eager, cuDNN attention, padding masked"
COMPILED = "torch.compile, cuDNN attention"
OPERATOR = "torch operator"
ENGINE = "engine"
SPARSITIES = (0.5, 0.64, 0.8)
CHECKED = 0.5  # where the engine is held against the operator
COMPILED_AT = 0.8  # and there as well, as torch.compile with RainFusion
# Attention in float32 runs at a fiftieth of the speed: only where it is done in a second or two.
_FLOAT32_FLOPS = 5e13


@dataclass(frozen=True, kw_only=True)
class Options(MeasureOptions):
    """Options of a measurement that has an engine.

    Attributes
    ----------
    target
        Target of the engine; None runs the file in ONNX Runtime, whose attention is dense.
    keep
        Leave the exported file and the engine.
    """

    target: str | None = "native"
    keep: bool = False


@dataclass
class Baselines:
    """The forwards that the engine is held against.

    Attributes
    ----------
    forwards
        Warm, by name, without those that failed.
    outputs
        The output of each.
    rows
        Kernels, memory and failures.
    """

    forwards: dict[str, Forward] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def measure(case: Case, folder: Path, options: Options, save: Save) -> list[Row]:
    """Measure all rows of a case. Whenever a part is done, `save` gets the rows so far."""
    torch._dynamo.reset()  # after a few networks it would run the next one eager, and not say so
    before = used_gib()
    eager = Eager(case)
    prepared = prepare(case, folder, transformer=eager.transformer, target=options.target)
    release()
    rows = [_tokens_row(eager), *prepared.rows()]
    baselines = eager_baselines(eager, before)
    rows += baselines.rows
    save(rows)
    release()
    before = used_gib()
    engine = Engine(load(prepared, case), eager.inputs)
    engine(CHECKED)
    rows += memory_rows(ENGINE, before)
    rows += compare(eager, baselines, engine)
    save(rows)
    compiled = compiled_baseline(eager, baselines.outputs[EAGER], options)
    baselines.forwards |= compiled.forwards
    rows += compiled.rows
    save(rows)
    release()
    sparse = compiled_sparse(eager, options)
    rows += sparse.rows
    save(rows)
    release()
    runs = _timed(eager, baselines, engine)
    runs |= {(name, COMPILED_AT): forward for name, forward in sparse.forwards.items()}
    rows += time_in_turn(runs, options.rounds, case.blocks)
    save(rows)
    rows += rounding(eager, baselines, engine)
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


def eager_baselines(eager: Eager, before: float) -> Baselines:
    """diffusers' forward; where it masks padding, also one that leaves the padding out.

    The latter is the faster one, so it has the plain name.

    Raises
    ------
    Exception
        Whatever that one raises: without it there is nothing to hold the engine against.
    """
    baselines = Baselines()
    padded = eager.valid != eager.tokens
    eager.settle()
    _add(baselines, eager, EAGER, eager.without_padding if padded else eager)
    baselines.rows += memory_rows(EAGER, before)
    if padded:
        try:
            _add(baselines, eager, MASKED, eager)
        except RuntimeError as error:  # cuDNN may refuse the mask, or run out of memory over it
            baselines.rows.append(failed_row("one forward", MASKED, error))
            release()
    return baselines


def _add(baselines: Baselines, eager: Eager, name: str, forward: Forward) -> None:
    baselines.outputs[name] = forward()
    baselines.rows.append(kernel_row(name, forward, eager))
    baselines.forwards[name] = forward


def compiled_baseline(eager: Eager, wanted: Tensor, options: Options) -> Baselines:
    """torch.compile's forward with padding left out, or a row that says why there is none."""
    baselines = Baselines()
    module: Any = torch.compile(eager.transformer, backend=options.compiler, dynamic=False)
    padded = eager.valid != eager.tokens
    forward = partial(eager.without_padding if padded else eager, module=module)
    try:
        with time_limit(options.seconds):
            _add(baselines, eager, COMPILED, forward)
    except Exception as failure:  # whatever the compiler raises: the row says it
        release()
        return Baselines(rows=[failed_row("torch.compile", COMPILED, failure)])
    error = relative_error(baselines.outputs.pop(COMPILED), wanted)
    baselines.rows.append(error_row(COMPILED, 0.0, EAGER, error))
    return baselines


def compiled_sparse(eager: Eager, options: Options) -> Baselines:
    """torch.compile's forward with RainFusion, or a row that says why there is none."""
    wanted = eager.routed(COMPILED_AT)
    routed = eager.twin()
    case = eager.case
    enable(
        routed.transformer,
        sparsity=COMPILED_AT,
        model=case.model,
        method=case.method,
        precision=case.precision,
    )
    module: Any = torch.compile(routed.transformer, backend=options.compiler, dynamic=False)
    forward = partial(routed, module=module)
    try:
        with time_limit(options.seconds):
            error = relative_error(forward(), wanted)
    except Exception as failure:  # whatever the compiler raises: the row says it
        release()
        return Baselines(rows=[failed_row("torch.compile", COMPILED_SPARSE, failure)])
    row = error_row(COMPILED_SPARSE, COMPILED_AT, OPERATOR, error)
    return Baselines({COMPILED_SPARSE: forward}, {}, [row])


def compare(eager: Eager, baselines: Baselines, engine: Engine) -> list[Row]:
    """One forward call of each."""
    dense = engine(0.0)
    rows = [
        error_row(ENGINE, 0.0, name, relative_error(dense, out))
        for name, out in baselines.outputs.items()
    ]
    operator = eager.routed(0.0)
    rows.append(error_row(OPERATOR, 0.0, EAGER, relative_error(operator, baselines.outputs[EAGER])))
    rows.append(error_row(ENGINE, 0.0, OPERATOR, relative_error(dense, operator)))
    if MASKED in baselines.outputs:
        error = relative_error(baselines.outputs[MASKED], baselines.outputs[EAGER])
        rows.append(error_row(MASKED, 0.0, EAGER, error))
    operator = eager.routed(CHECKED)
    if engine.sparse:
        sparse = engine(CHECKED)
        rows.append(error_row(ENGINE, CHECKED, OPERATOR, relative_error(sparse, operator)))
        # No check: what sparse attention leaves out of this network of random weights.
        left_out = {"what": "left out", "run": ENGINE, "sparsity": CHECKED, "against": EAGER}
        left_out["difference"] = relative_error(sparse, baselines.outputs[EAGER])
        rows.append(left_out)
        error = relative_error(engine(COMPILED_AT), eager.routed(COMPILED_AT))
        rows.append(error_row(ENGINE, COMPILED_AT, OPERATOR, error))
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


def _timed(eager: Eager, baselines: Baselines, engine: Engine) -> dict[tuple[str, float], Forward]:
    """Everything that is timed in turn, warmed up here."""
    runs: dict[tuple[str, float], Forward] = {
        (name, 0.0): forward for name, forward in baselines.forwards.items()
    }
    for s in (0.0, *SPARSITIES):
        if engine.sparse or s == 0.0:
            runs[ENGINE, s] = partial(engine, s)
        if s in (0.0, CHECKED):
            runs[OPERATOR, s] = partial(eager.routed, s)
    for run in runs.values():
        run()
    return runs


def rounding(eager: Eager, baselines: Baselines, engine: Engine) -> list[Row]:
    """Errors of eager and engine against float32, where a forward in float32 is cheap."""
    config: Any = eager.transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    flops = 4 * eager.case.batch * eager.case.blocks * eager.tokens**2 * width
    outputs = {EAGER: baselines.outputs[EAGER], ENGINE: engine(0.0)}
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
