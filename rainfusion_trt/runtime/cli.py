"""``rainfusion-trt run``: a text, a picture or a video, and a model; a video in a file."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.launch import is_first, is_started, launch, reporting
from rainfusion_trt.runtime import options
from rainfusion_trt.runtime.option_groups import (
    Attention,
    AttentionBits,
    Caching,
    Clip,
    Graphs,
    Place,
    Start,
    Weights,
)
from rainfusion_trt.runtime.precision import precision_of_options
from rainfusion_trt.spread_options import spread_options
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import read_cache

if TYPE_CHECKING:
    from rainfusion_trt.runtime.pipeline import Pipeline, PipelineOutput


@spread_options
def main(
    *,
    prompt: options.Prompt,
    checkpoint: options.Checkpoint,
    output: options.Output = Path("out/video.mp4"),
    model: options.Model = None,
    graphs: Graphs,
    weights: Weights,
    backend: options.Backend = "auto",
    start: Start,
    clip: Clip,
    attention: Attention,
    bits: AttentionBits,
    caching: Caching,
    fps: options.Fps = None,
    overwrite: options.Overwrite = False,
    place: Place,
    vae_tiling: options.VaeTiling = False,
    allow_fallback: options.AllowFallback = False,
    allow_dense: options.AllowDense = False,
    profile: options.Profile = False,
    gpus: options.Gpus = 1,
    split_guidance: options.SplitGuidance = False,
    overlap: options.Overlap = False,
    timeout: options.Timeout = 60.0,
) -> None:
    """Make a video from a text, and a picture or a video."""
    from rainfusion_trt.runtime.media import read_named

    chosen: dict[str, Any] = {"checkpoint": checkpoint, "backend": backend, **asdict(graphs)}
    chosen |= {**attention.arguments, **asdict(caching)}
    chosen["precision"] = precision_of_options(
        bits.attention_precision, bits.first_16bit, bits.last_16bit
    )
    chosen |= {"allow_fallback": allow_fallback, "allow_dense": allow_dense, **asdict(place)}
    call = clip.arguments | start.values
    _check(output, fps, call, overwrite=overwrite)
    _check_cache(caching, call, start.video)
    call |= read_named(start.files)
    given = [name for name in (*start.files, *start.values) if call.get(name) is not None]
    _check_takes(model or _exported_model(graphs), checkpoint, given)
    chosen["transformer"] = asdict(weights)
    chosen["parallel"] = _parallel(gpus, split_guidance, timeout, overlap=overlap)
    if gpus > 1 and not is_started():
        _check_shared(backend, graphs, overlap=overlap)
        launch((sys.executable, "-m", "rainfusion_trt.cli", *sys.argv[1:]), gpus)
        return
    with reporting(), _pipeline(model, vae_tiling=vae_tiling, **chosen) as pipeline:
        result = _video(pipeline, prompt, profile=profile, **call)
        if not is_first():
            return
        _save(result, output, fps or pipeline.model.defaults.fps, overwrite=overwrite)
    if profile:
        _print_timings(result.timings)
    typer.echo(output)


def _parallel(
    gpus: int, split_guidance: bool, timeout: float, *, overlap: bool = False
) -> ParallelConfig | None:
    """How processes share the work; None for one alone."""
    guidance = 2 if split_guidance else 1
    if gpus % guidance:
        raise InvalidInputError(
            f"--split-guidance makes two groups of --gpus {gpus}: give 2, 4 ..."
        )
    config = ParallelConfig(gpus // guidance, guidance, timeout, overlap=overlap)
    return None if gpus == 1 else config


def _check_shared(backend: str, graphs: Graphs, *, overlap: bool = False) -> None:
    """Refuse before processes are started what each of them would refuse."""
    exported = graphs.engine is not None or graphs.onnx is not None
    if overlap and (backend not in ("auto", "torch") or (backend == "auto" and exported)):
        from rainfusion_trt.parallel.sharing import NO_OVERLAP

        raise UnsupportedError(NO_OVERLAP)
    only_onnx = graphs.engine is None and graphs.onnx is not None
    if backend == "onnxruntime" or (backend == "auto" and only_onnx):
        from rainfusion_trt.parallel.sharing import NO_ONNXRUNTIME

        raise UnsupportedError(NO_ONNXRUNTIME)


def _check(output: Path, fps: int | None, call: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse what cannot be before anything is loaded."""
    from rainfusion_trt.runtime.call_arguments import check_numbers, check_seed
    from rainfusion_trt.video import check_fps, check_target

    check_target(output, overwrite=overwrite)
    if fps is not None:
        check_fps(fps)
    check_numbers({name: value for name, value in call.items() if value is not None})
    check_seed(call["seed"])


def _check_cache(caching: Caching, call: dict[str, Any], video: Path | None) -> None:
    """Refuse a cache that cannot be, and a number of steps that it was not calibrated for."""
    import diffusers

    from rainfusion_trt.runtime.call_arguments import asked_steps

    ratios = MagnitudeRatios.read(caching.cache_ratios)
    settings = read_cache(caching.cache, caching.cache_threshold, ratios)
    steps = call["num_inference_steps"]
    if ratios is None:
        return
    if settings is None or settings.rule != "mag":
        cache = "there is none" if settings is None else f"this one is {settings.rule}"
        raise InvalidInputError(
            f"--cache-ratios {caching.cache_ratios} is for a cache that is mag, and {cache}: "
            "give --cache mag, or leave it out"
        )
    if steps is None:
        return
    scheduler = getattr(diffusers, ratios.scheduler, None)
    if scheduler is not None and video is None and call["strength"] is None:
        wanted = asked_steps(scheduler, ratios.steps)
        if steps != wanted:
            raise InvalidInputError(
                f"--steps {steps}, and {caching.cache_ratios} is of {wanted}: give --steps "
                f"{wanted}, or calibrate for {steps}"
            )


def _exported_model(graphs: Graphs) -> str | None:
    from rainfusion_trt.runtime.graphs import graph_of_engine, graph_of_onnx

    if graphs.engine is not None:
        return graph_of_engine(graphs.engine).model
    return None if graphs.onnx is None else graph_of_onnx(graphs.onnx).model


def _check_takes(model: str | None, checkpoint: str, names: list[str]) -> None:
    """Refuse a start that no pipeline of the model has, before gigabytes are loaded."""
    from rainfusion_trt.models import get_model
    from rainfusion_trt.runtime.pipes import class_of_checkpoint, class_that_takes

    if model is None or not names:
        return  # `Pipeline` asks for the model, or finds nothing to refuse
    known = get_model(model)
    class_that_takes(known, class_of_checkpoint(known, checkpoint), names, fixed=False)


def _pipeline(model: str | None, *, vae_tiling: bool, **chosen: Any) -> Pipeline:
    from rainfusion_trt.runtime.pipeline import Pipeline

    pipeline = Pipeline(model, **chosen)
    if vae_tiling:
        pipeline.pipe.vae.enable_tiling()
    return pipeline


def _video(pipeline: Pipeline, prompt: str, **call: Any) -> PipelineOutput:
    from rainfusion_trt.runtime.pipeline import PipelineOutput

    result = pipeline(prompt, output_type="np", **call)
    assert isinstance(result, PipelineOutput)  # as return_dict is True
    return result


def _save(result: PipelineOutput, output: Path, fps: int, *, overwrite: bool) -> None:
    from rainfusion_trt.video import Sound, save_video

    sound = None
    if result.audio is not None and result.audio_rate is not None:
        sound = Sound(result.audio[0], result.audio_rate)
    save_video(result.frames[0], output, fps=fps, sound=sound, overwrite=overwrite)


def _print_timings(timings: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("step", "sparsity", "density", "precision", "transformer ms", "step ms"):
        table.add_column(title, justify="right")
    for row in timings:
        times = (f"{row.transformer_ms:.1f}", f"{row.total_ms:.1f}")
        density = "" if row.density is None else f"{row.density:.3f}"
        sparsity = f"{row.sparsity:g}" if row.ran else "skipped"
        table.add_row(str(row.step), sparsity, density, row.precision or "", *times)
    Console(stderr=True).print(table)
