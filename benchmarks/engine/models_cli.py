"""Measure models with few layers, one complete model, and one engine at two sizes.

    python scripts/bench_models.py --workdir /dev/shm/rf --models hunyuanvideo --models wan2.1-14b
    python scripts/bench_models.py --workdir /dev/shm/rf --complete
    python scripts/bench_models.py --workdir /dev/shm/rf --two-sizes

All at the models' standard sizes and in bfloat16, with seeded random weights. The engine is held
against diffusers' eager transformer (cuDNN attention) at sparsity 0 and against the torch operator
at 0.5 and 0.8. Times are taken in turn, those of torch.compile with and without RainFusion among
them. Each benchmark writes its own ``models_<name>.json`` whenever a part of it is done, so a run
that is cut short keeps its rows.
``--prepare`` only exports and builds (several can run at the same time); a later run with the same
folder uses the result. ``--tiny`` rehearses all of it, on the CPU in ONNX Runtime.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from benchmarks.engine import complete, few_layers, kept, two_sizes
from benchmarks.engine.cases import Case
from benchmarks.engine.engines import prepare, recipe_of_sizes
from benchmarks.engine.few_layers import Options
from benchmarks.engine.kept import Save
from benchmarks.engine.measure import TOLERANCE, Row, release, wrong_rows
from benchmarks.record import RESULTS
from rainfusion_trt.engine import EngineRecipe
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import PRECISIONS, AttentionSettings

LAYERS = {
    "hunyuanvideo": 1,
    "opensoraplan-1.2": 2,
    "cogvideox-5b": 2,
    "wan2.1-14b": 2,
    "wan2.2-i2v-a14b": 2,
    "hunyuanvideo-1.5-i2v": 2,
    "ltx-2": 2,
}
COMPLETE = "opensoraplan-1.2"
TWO_SIZES = "wan2.1-14b"
SIZES = {"720p": VideoSize(81, 720, 1280), "480p": VideoSize(81, 480, 832)}
TINY_SIZES = {"large": VideoSize(9, 64, 96), "small": VideoSize(5, 48, 80)}
NOTE = (
    "seeded random weights (flat attention); TensorRT for RTX 1.6.1 on Hopper is "
    "an unsupported combination whose GEMMs are not tuned for it. The time of a block is that of a "
    "forward over its blocks, so that it holds a share of the embeddings, of the output layer and, "
    "where the model has one, of the text refiner. Where a model pads its text, eager and "
    "torch.compile leave the padding out of self-attention unless it says masked"
)
app = typer.Typer(add_completion=False, help=__doc__)


@dataclass(frozen=True)
class Job:
    """One result file.

    Attributes
    ----------
    name
        Name of the file, after ``models_``, and of the scratch folder.
    recipe
        None where the file's own size is the recipe.
    run
        (folder, options, save) -> rows.
    """

    name: str
    case: Case
    recipe: EngineRecipe | None
    run: Callable[[Path, Options, Save], list[Row]]


def jobs_of(
    models: list[str], *, whole: bool, sizes: bool, steps: int, settings: dict[str, Any]
) -> list[Job]:
    """Jobs of the command line, all checked before the first starts."""
    jobs = []
    for name in models:
        known = get_model(name).name
        if known not in LAYERS:
            raise InvalidInputError(
                f"model {name!r} has no few-layer benchmark; choose from {', '.join(LAYERS)}"
            )
        case = Case.standard(known, layers=LAYERS[known], **settings)
        jobs.append(Job(known, case, None, partial(few_layers.measure, case)))
    if whole:
        case = Case.standard(COMPLETE, **settings)

        def run(folder: Path, options: Options, save: Save, case: Case = case) -> list[Row]:
            return complete.measure(case, folder, options, steps, save)

        jobs.append(Job(f"{COMPLETE}_complete", case, None, run))
    if sizes:
        chosen = TINY_SIZES if settings["tiny"] else SIZES
        first = next(iter(chosen.values()))
        case = Case.standard(
            TWO_SIZES, layers=LAYERS[TWO_SIZES], size=first, dynamic=True, **settings
        )
        job = partial(two_sizes.measure, case, chosen)
        jobs.append(Job(f"{TWO_SIZES}_two-sizes", case, recipe_of_sizes(case, chosen), job))
    if not jobs:
        raise InvalidInputError("nothing to do: give --models, --complete or --two-sizes")
    return jobs


def measured(job: Job, folder: Path, options: Options, output: Path) -> list[Row]:
    """Run a job and keep its rows."""
    bits = "" if job.case.precision == AttentionSettings.precision else f"_{job.case.precision}"
    run = partial(job.run, folder, options)
    file = f"models_{job.name}{bits}"
    return kept.measured(job.name, job.case, run, file=file, note=NOTE, output=output)


@app.command()
def main(
    workdir: Annotated[Path, typer.Option(help="Scratch folder; needs three times the weights.")],
    models: Annotated[
        list[str] | None, typer.Option(help=f"Few layers of {', '.join(LAYERS)}; repeatable.")
    ] = None,
    whole: Annotated[
        bool, typer.Option("--complete", help=f"All of {COMPLETE}, with denoising steps.")
    ] = False,
    sizes: Annotated[
        bool, typer.Option("--two-sizes", help=f"One engine of {TWO_SIZES} at two sizes.")
    ] = False,
    attention_precision: Annotated[
        str, typer.Option(help=f"Of {' and '.join(PRECISIONS)}; of 8 bits the file says so.")
    ] = AttentionSettings.precision,
    tiny: Annotated[bool, typer.Option("--tiny", help="Rehearse with tiny networks.")] = False,
    only_prepare: Annotated[
        bool, typer.Option("--prepare", help="Export and build, and keep that.")
    ] = False,
    steps: Annotated[int, typer.Option(help="Denoising steps of --complete.", min=2)] = 4,
    rounds: Annotated[int, typer.Option(help="Timings of each run.", min=1)] = 5,
    compiler: Annotated[str, typer.Option(help="Backend of torch.compile.")] = "inductor",
    compile_seconds: Annotated[float, typer.Option(help="When to give up compiling.")] = 180.0,
    target: Annotated[
        str | None, typer.Option(help="For --prepare without a GPU, such as sm80.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep exported files and engines.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder of the JSON files.")] = None,
) -> None:
    """Export, build, compare and time."""
    if tiny and not only_prepare and output is None:
        raise InvalidInputError("--tiny measures nothing real: give --output for its files")
    if target is not None and not only_prepare:
        raise InvalidInputError("--target goes with --prepare: other engines do not run here")
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu or not (tiny or target) else "cpu"
    dtype = torch.bfloat16 if gpu or target else torch.float32
    if attention_precision not in PRECISIONS:
        raise InvalidInputError(
            f"--attention-precision {attention_precision}: give one of {', '.join(PRECISIONS)}"
        )
    settings = {"tiny": tiny, "device": device, "dtype": dtype}
    settings["precision"] = attention_precision
    jobs = jobs_of(models or [], whole=whole, sizes=sizes, steps=steps, settings=settings)
    options = Options(
        rounds=rounds,
        compiler=compiler,
        seconds=compile_seconds,
        target=target or ("native" if device == "cuda" else None),
        keep=keep,
    )
    wrong: list[Row] = []
    for job in jobs:
        folder = workdir / job.name
        if only_prepare:
            prepared = prepare(job.case, folder, recipe=job.recipe, target=options.target)
            print(f"{job.name}: {prepared.seconds} in {folder}", flush=True)
            release()
            continue
        wrong += wrong_rows(measured(job, folder, options, output or RESULTS))
    if wrong:
        raise SystemExit(f"{len(wrong)} rows failed or are not below {TOLERANCE:.0e}: {wrong}")


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("rainfusion_trt").setLevel(logging.INFO)
    try:
        app()
    except RainFusionError as error:
        raise SystemExit(f"error: {error}") from error
