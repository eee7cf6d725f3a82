"""Run a whole model inside its diffusers pipeline: each step, engine against operator."""

from __future__ import annotations

import statistics
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.engine.cases import Case
from benchmarks.engine.denoising import Run, denoise, latent_pipeline, prompt_arguments
from benchmarks.engine.eager import Eager, kernel_row
from benchmarks.engine.engines import Engine, Prepared, backend_of, prepare
from benchmarks.engine.few_layers import CHECKED, EAGER, ENGINE, OPERATOR, Options
from benchmarks.engine.kept import Save
from benchmarks.engine.measure import (
    Forward,
    Row,
    error_row,
    memory_rows,
    relative_error,
    release,
    spread,
    time_in_turn,
    used_gib,
    worst,
)
from rainfusion_trt import Pipeline


def measure(case: Case, folder: Path, options: Options, steps: int, save: Save) -> list[Row]:
    """Measure all rows. Whenever a part is done, `save` gets the rows so far."""
    before = used_gib()
    eager = Eager(case)
    prepared = prepare(case, folder, transformer=eager.transformer, target=options.target)
    release()
    rows = prepared.rows()
    eager.settle()
    wanted = eager()
    rows += memory_rows(EAGER, before)
    rows.append(kernel_row(EAGER, eager, eager))
    save(rows)
    release()
    start = used_gib()
    with _pipeline(eager, prepared) as pipeline:
        engine = Engine(backend_of(pipeline), eager.inputs)
        rows.append(error_row(ENGINE, 0.0, EAGER, relative_error(engine(0.0), wanted)))
        rows += memory_rows(ENGINE, start)
        engine(CHECKED)
        del wanted
        save(rows)
        for s in (0.0, CHECKED) if engine.sparse else (0.0,):
            run, values = _denoise(pipeline, eager, s, steps)
            rows += _times(run, values)
            save(rows)
            rows.append(compare_steps(eager, run, values, s))
            save(rows)
            del run
            release()
        if not engine.sparse:
            reason = f"{engine.backend.name} has dense attention only"
            rows.append(
                {"what": _what(steps), "run": ENGINE, "sparsity": CHECKED, "not_run": reason}
            )
        rows += memory_rows("all of it", before)
        rows += time_in_turn(_timed(eager, engine), options.rounds, case.blocks)
    save(rows)
    if not options.keep:
        prepared.remove()
    return rows


def _pipeline(eager: Eager, prepared: Prepared) -> Pipeline:
    pipe = latent_pipeline(eager.model, eager.transformer)
    if prepared.engine is not None:
        return Pipeline(pipe=pipe, engine=prepared.engine)
    return Pipeline(
        pipe=pipe,
        onnx=prepared.onnx,
        backend="onnxruntime",
        sparsity=0.0,
        device=eager.case.device,
    )


def _denoise(pipeline: Pipeline, eager: Eager, sparsity: float, steps: int) -> tuple[Run, list]:
    """The steps, all dense or all but the first at `sparsity`, and the sparsity of each."""
    schedule = [0.0] + [sparsity] * (steps - 1)
    prompt: dict[str, Any] = prompt_arguments(eager.model, eager.transformer)
    run = denoise(
        pipeline,
        pipeline.pipe.transformer,
        eager.case.size,
        schedule=schedule,
        num_inference_steps=steps,
        profile=True,
        **prompt,
    )
    return run, schedule


def _what(steps: int) -> str:
    return f"{steps} denoising steps"


def _times(run: Run, schedule: list[float]) -> list[Row]:
    """Time of a step with guidance and scheduler, by sparsity."""
    rows = []
    for s in sorted(set(schedule)):
        timings = [timing for timing in run.timings if timing.sparsity == s]
        row = {"what": "time of one step", "run": ENGINE, "sparsity": s, "steps": len(timings)}
        row |= spread([timing.total_ms for timing in timings])
        row["transformer_ms"] = round(statistics.median(t.transformer_ms for t in timings), 2)
        row["sparsity_of_run"] = max(schedule)
        rows.append(row)
    return rows


def compare_steps(eager: Eager, run: Run, schedule: list[float], sparsity: float) -> Row:
    """Each step's output against the torch operator on the same inputs."""
    errors = [
        relative_error(output, eager.routed(step, call))
        for step, call, output in zip(schedule, run.calls, run.outputs, strict=True)
    ]
    return {
        "what": _what(len(schedule)),
        "run": ENGINE,
        "sparsity": sparsity,
        "against": OPERATOR,
        "relative_error": worst(errors),
        "relative_error_per_step": errors,
        "finite_latents": bool(run.latents.isfinite().all()),
    }


def _timed(eager: Eager, engine: Engine) -> dict[tuple[str, float], Forward]:
    """One forward of each, all of which have run before."""
    runs: dict[tuple[str, float], Forward] = {(EAGER, 0.0): eager}
    for s in (0.0, CHECKED):
        if engine.sparse or s == 0.0:
            runs[ENGINE, s] = partial(engine, s)
        runs[OPERATOR, s] = partial(eager.routed, s)
    return runs
