"""``rainfusion-trt calibrate-cache``: a model and prompts; a small JSON for ``cache="mag"``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from rainfusion_trt.runtime import options
from rainfusion_trt.runtime.option_groups import Attention, Clip, Graphs, Place, Start, Weights
from rainfusion_trt.spread_options import spread_options

Prompts = Annotated[list[str], typer.Option("--prompt", help="Of a generation, repeatable.")]
Output = Annotated[Path, typer.Option(help="The JSON file.")]


@spread_options
def main(
    *,
    prompt: Prompts,
    checkpoint: options.Checkpoint,
    output: Output = Path("out/cache_ratios.json"),
    model: options.Model = None,
    graphs: Graphs,
    weights: Weights,
    backend: options.Backend = "auto",
    start: Start,
    clip: Clip,
    attention: Attention,
    overwrite: options.Overwrite = False,
    place: Place,
    allow_dense: options.AllowDense = False,
) -> None:
    """Measure what cache="mag" needs of a model, a scheduler and a number of steps."""
    from rainfusion_trt.runtime.media import read_named

    chosen: dict[str, Any] = {"checkpoint": checkpoint, "backend": backend, **asdict(graphs)}
    chosen |= {**attention.arguments, **asdict(place), "allow_dense": allow_dense}
    chosen["transformer"] = asdict(weights)
    call = clip.arguments | start.values
    _check(output, call, overwrite=overwrite)
    call |= read_named(start.files)
    ratios = _measure(prompt, model, chosen, call)
    typer.echo(_write(ratios, output, overwrite=overwrite))


def _check(output: Path, call: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse what cannot be before anything is loaded."""
    from rainfusion_trt.files.place import check_file
    from rainfusion_trt.runtime.call_arguments import check_numbers, check_seed
    from rainfusion_trt.step_cache.ratios import is_ours

    check_file(
        output,
        ours=lambda there: overwrite or is_ours(there),
        remedy=", or say that it may be overwritten (--overwrite)",
    )
    check_numbers({name: value for name, value in call.items() if value is not None})
    check_seed(call["seed"])


def _measure(
    prompts: list[str], model: str | None, chosen: dict[str, Any], call: dict[str, Any]
) -> Any:
    from rainfusion_trt.runtime.pipeline import Pipeline
    from rainfusion_trt.step_cache.calibrate import calibrate

    with Pipeline(model, **chosen) as pipeline:
        return calibrate(pipeline, prompts, **call)


def _write(ratios: Any, output: Path, *, overwrite: bool) -> Path:
    from rainfusion_trt.files.place import check_file
    from rainfusion_trt.files.staging import staging
    from rainfusion_trt.step_cache.ratios import is_ours

    with staging(output) as stage:
        (stage.new / output.name).write_text(ratios.text(), encoding="utf-8")
        check_file(output, ours=lambda there: overwrite or is_ours(there))
        stage.publish()
    return output
