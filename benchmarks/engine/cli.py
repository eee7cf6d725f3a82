"""Compare a real network in TensorRT with eager PyTorch: agreement, time and memory.

    python scripts/bench_engine.py --workdir /dev/shm/rainfusion [--layers 42] [--steps 4]

Makes a model with seeded random weights at its real width and size, exports it, builds the engine,
and holds it against diffusers' eager transformer (cuDNN attention) at sparsity 0, against the torch
operator at sparsity 0.5, and both inside the diffusers pipeline. Timings are taken in turn. Writes
``engine_<model>.json``, with ``--layers`` ``engine_<model>_<n>-layers.json``. Random weights give
flat attention, which is textural: the times of the other kinds are in ``attention.json``. Several
models with few layers: ``bench_models.py``.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.engine.cases import Case
from benchmarks.engine.denoising import denoise, latent_pipeline, prompt_arguments
from benchmarks.engine.eager import Eager, cudnn_first
from benchmarks.engine.engines import Engine, backend_of, prepare
from benchmarks.engine.measure import (
    TOLERANCE,
    Forward,
    Row,
    error_row,
    memory_rows,
    relative_error,
    release,
    time_in_turn,
    used_gib,
    worst,
    wrong_rows,
)
from benchmarks.record import write_result
from rainfusion_trt import Pipeline
from rainfusion_trt.operator.settings import AttentionSettings

ROOT = Path(__file__).resolve().parents[2]
SPARSITY = 0.5
EAGER, OPERATOR = "eager, cuDNN attention", "torch operator"
AGAINST = {0.0: "diffusers eager", SPARSITY: OPERATOR}


class PipelineEngine(Engine):
    """The built engine inside a diffusers pipeline, and on its own."""

    def __init__(self, eager: Eager, folder: Path, *, cuda_graph: bool) -> None:
        pipe = latent_pipeline(eager.model, eager.transformer)
        self.pipeline = Pipeline(pipe=pipe, engine=folder, cuda_graph=cuda_graph)
        super().__init__(backend_of(self.pipeline), eager.inputs)


def compare_pipelines(eager: Eager, engines: dict[str, PipelineEngine], steps: int) -> list[Row]:
    """Denoising with the engine: each step's output against eager on the same inputs.

    The final latents are held against those of diffusers' own run too. There the differences of
    all steps add up, and guidance multiplies the difference of the two halves of a batch by 6;
    that difference is small where weights are random.
    """
    size = eager.case.size
    prompt: dict[str, Any] = prompt_arguments(eager.model, eager.transformer)
    prompt["num_inference_steps"] = steps
    schedules = {0.0: [0.0] * steps, SPARSITY: [0.0] + [SPARSITY] * (steps - 1)}
    pipe = latent_pipeline(eager.model, eager.transformer)
    with cudnn_first(eager.case.device):
        latents = {0.0: denoise(pipe, eager.transformer, size, **prompt).latents}
        with Pipeline(pipe=pipe, backend="torch", method=eager.case.method) as routed:
            run = denoise(routed, eager.transformer, size, schedule=schedules[SPARSITY], **prompt)
            latents[SPARSITY] = run.latents
    rows = []
    for name, engine in engines.items():
        component = engine.pipeline.pipe.transformer
        for s, schedule in schedules.items():
            run = denoise(engine.pipeline, component, size, schedule=schedule, **prompt)
            errors = [
                relative_error(output, eager.answer(call, step))
                for step, call, output in zip(schedule, run.calls, run.outputs, strict=True)
            ]
            rows.append(
                {
                    "what": f"{steps} denoising steps",
                    "run": name,
                    "sparsity": s,
                    "against": AGAINST[s],
                    "relative_error": worst(errors),
                    "relative_error_per_step": errors,
                    "relative_error_of_latents": relative_error(run.latents, latents[s]),
                }
            )
    return rows


def compare_outputs(eager: Eager, engines: dict[str, PipelineEngine]) -> list[Row]:
    """One forward call of each; the graph replays while sparsity changes between the calls."""
    wanted = {0.0: eager(), SPARSITY: eager.routed(SPARSITY)}
    runs = [(name, s, engine(s)) for name, engine in engines.items() for s in (0.0, SPARSITY, 0.0)]
    runs.append((OPERATOR, 0.0, eager.routed(0.0)))
    return [error_row(name, s, AGAINST[s], relative_error(out, wanted[s])) for name, s, out in runs]


def compare_with_float32(eager: Eager, engine: PipelineEngine) -> list[Row]:
    """Errors of bfloat16 against float32, which put the other errors into scale."""
    outputs = {EAGER: eager(), "engine": engine(0.0)}
    wanted = eager.float32()
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


def time_all(eager: Eager, engines: dict[str, PipelineEngine], rounds: int) -> list[Row]:
    """Milliseconds of one forward call (batch 2), all in turn."""
    runs: dict[tuple[str, float], Forward] = {(EAGER, 0.0): eager}
    for s in (0.0, SPARSITY):
        runs[OPERATOR, s] = partial(eager.routed, s)
        runs |= {(name, s): partial(engine, s) for name, engine in engines.items()}
    return time_in_turn(runs, rounds)


def main(
    workdir: Annotated[Path, typer.Option(help="scratch folder; needs twice the weights")],
    model: Annotated[str, typer.Option(help="registry name")] = "cogvideox-5b",
    layers: Annotated[int | None, typer.Option(help="default: all")] = None,
    profile: Annotated[Path | None, typer.Option(help="default: engines/<model>.yaml")] = None,
    steps: Annotated[int, typer.Option(help="denoising steps")] = 4,
    rounds: Annotated[int, typer.Option(help="timings of each run")] = 5,
    output: Annotated[Path | None, typer.Option(help="folder of the JSON file")] = None,
    keep: Annotated[bool, typer.Option(help="keep the exported model and the engine")] = False,
    float32: Annotated[bool, typer.Option(help="also compare with eager in float32")] = True,
    method: Annotated[str | None, typer.Option(help="by default that of the package")] = None,
) -> None:
    """Export, build, compare and time one model at its standard size."""
    case = dataclasses.replace(Case.standard(model, layers=layers), batch=2)
    if method is not None:
        settings = AttentionSettings(method=method)  # type: ignore[arg-type]  # which checks it
        case = dataclasses.replace(case, method=settings.method)
    recipe = profile or ROOT / "engines" / f"{case.model.name}.yaml"
    torch.zeros(1, device="cuda")
    before = used_gib()
    eager = Eager(case)
    eager()
    rows = memory_rows(EAGER, before)
    release()
    folder = workdir / case.model.name
    prepared = prepare(case, folder, transformer=eager.transformer, recipe=recipe)
    rows = [*prepared.rows(), *rows]
    release()
    before = used_gib()
    assert prepared.engine is not None  # its target is this GPU
    engines = {"engine": PipelineEngine(eager, prepared.engine, cuda_graph=False)}
    engines["engine"](SPARSITY)
    rows += memory_rows("engine", before)
    engines["engine, CUDA graph"] = PipelineEngine(eager, prepared.engine, cuda_graph=True)
    rows += compare_outputs(eager, engines)
    rows += time_all(eager, engines, rounds)
    rows += compare_pipelines(eager, engines, steps)
    if float32:
        rows += compare_with_float32(eager, engines["engine"])
    for row in rows:
        print(row)
    suffix = "" if layers is None else f"_{layers}-layers"
    if method is not None:
        suffix += f"_{method}"
    result = write_result(
        f"engine_{case.model.name}{suffix}",
        [{**case.facts(), **row} for row in rows],
        note="seeded random weights (flat attention); "
        "TensorRT for RTX 1.6.1 on Hopper is an unsupported combination whose GEMMs are not tuned "
        "for it",
        folder=output,
    )
    print(f"wrote {result}")
    if not keep:
        prepared.remove()
    if wrong := wrong_rows(rows):
        raise SystemExit(f"relative error at or above {TOLERANCE:.0e}: {wrong[0]}")


if __name__ == "__main__":
    typer.run(main)
