"""``rainfusion-trt run``: a text, a picture or a video, and a model; a video in a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.exact_frames import frames_of_text
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.launch import is_first, is_started, launch, reporting
from rainfusion_trt.runtime import options
from rainfusion_trt.runtime.precision import precision_of_options
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import read_cache

if TYPE_CHECKING:
    from rainfusion_trt.runtime.pipeline import Pipeline, PipelineOutput


def main(
    prompt: options.Prompt,
    checkpoint: options.Checkpoint,
    output: options.Output = Path("out/video.mp4"),
    model: options.Model = None,
    engine: options.Engine = None,
    onnx: options.Onnx = None,
    engine_2: options.Second = None,
    onnx_2: options.Second = None,
    transformer: options.Transformer = None,
    transformer_2: options.Second = None,
    backend: options.Backend = "auto",
    image: options.Image = None,
    last_image: options.LastImage = None,
    video: options.Video = None,
    control_video: options.ControlVideo = None,
    pose_video: options.PoseVideo = None,
    face_video: options.FaceVideo = None,
    background_video: options.BackgroundVideo = None,
    mask_video: options.MaskVideo = None,
    mode: options.Mode = None,
    mask: options.Mask = None,
    reference_image: options.ReferenceImage = None,
    strength: options.Strength = None,
    negative_prompt: options.NegativePrompt = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    preset: options.Preset = None,
    method: options.Method = None,
    last_sink_frames: options.LastSinkFrames = None,
    exact_frames: options.ExactFrames = None,
    attention_precision: options.AttentionPrecision = None,
    first_16bit: options.First16bit = None,
    last_16bit: options.Last16bit = None,
    sparsity: options.Sparsity = None,
    dense_fraction: options.DenseFraction = None,
    dense_layer: options.DenseLayer = None,
    cache: options.Cache = None,
    cache_threshold: options.CacheThreshold = None,
    cache_ratios: options.CacheRatios = None,
    seed: options.Seed = 0,
    fps: options.Fps = None,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    cuda_graph: options.CudaGraph = False,
    compile: options.Compile = False,
    cpu_offload: options.CpuOffload = False,
    vae_tiling: options.VaeTiling = False,
    allow_fallback: options.AllowFallback = False,
    allow_dense: options.AllowDense = False,
    profile: options.Profile = False,
    gpus: options.Gpus = 1,
    split_guidance: options.SplitGuidance = False,
    timeout: options.Timeout = 60.0,
) -> None:
    """Make a video from a text, and a picture or a video."""
    from rainfusion_trt.runtime.media import read_named

    clip = {"num_frames": frames, "height": height, "width": width, "guidance_scale": guidance}
    call = {"num_inference_steps": steps, "negative_prompt": negative_prompt, "seed": seed, **clip}
    call |= {"strength": strength, "mode": mode}
    start: dict[str, Any] = {"image": image, "last_image": last_image, "video": video}
    start |= {"control_video": control_video, "mask": mask, "reference_images": reference_image}
    start |= {"pose_video": pose_video, "face_video": face_video, "mask_video": mask_video}
    start["background_video"] = background_video
    files = {"engine": engine, "onnx": onnx, "engine_2": engine_2, "onnx_2": onnx_2}
    weights = {"transformer": transformer, "transformer_2": transformer_2}
    schedule: dict[str, Any] = {
        "preset": preset,
        "sparsity": sparsity,
        "dense_fraction": dense_fraction,
    }
    schedule |= {"method": method, "dense_layers": dense_layer}
    schedule["last_sink_frames"] = last_sink_frames
    schedule["exact_frames"] = frames_of_text(exact_frames) if exact_frames else None
    schedule["precision"] = precision_of_options(attention_precision, first_16bit, last_16bit)
    caching = {"cache": cache, "cache_threshold": cache_threshold, "cache_ratios": cache_ratios}
    allowed = {"allow_fallback": allow_fallback, "allow_dense": allow_dense}
    place = {"device": device, "cpu_offload": cpu_offload}
    faster = {"cuda_graph": cuda_graph, "compile": compile}
    _check(output, fps, call, overwrite=overwrite)
    _check_cache(caching, call, video)
    call |= read_named(start)
    given = [name for name in (*start, "strength", "mode") if call.get(name) is not None]
    _check_takes(model or _exported_model(engine, onnx), checkpoint, given)
    chosen = {"checkpoint": checkpoint, "backend": backend, **files, **schedule, **allowed}
    chosen |= caching
    chosen["transformer"] = weights
    chosen |= {**place, **faster, "parallel": _parallel(gpus, split_guidance, timeout)}
    if gpus > 1 and not is_started():
        _check_shared(backend, engine, onnx)
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


def _parallel(gpus: int, split_guidance: bool, timeout: float) -> ParallelConfig | None:
    """How processes share the work; None for one alone."""
    guidance = 2 if split_guidance else 1
    if gpus % guidance:
        raise InvalidInputError(
            f"--split-guidance makes two groups of --gpus {gpus}: give 2, 4 ..."
        )
    config = ParallelConfig(ulysses=gpus // guidance, guidance=guidance, timeout=timeout)
    return None if gpus == 1 else config


def _check_shared(backend: str, engine: Path | None, onnx: Path | None) -> None:
    """Refuse before processes are started what each of them would refuse."""
    if backend == "onnxruntime" or (backend == "auto" and engine is None and onnx is not None):
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


def _check_cache(caching: dict[str, Any], call: dict[str, Any], video: Path | None) -> None:
    """Refuse a cache that cannot be, and a number of steps that it was not calibrated for."""
    import diffusers

    from rainfusion_trt.runtime.call_arguments import asked_steps

    ratios = MagnitudeRatios.read(caching["cache_ratios"])
    settings = read_cache(caching["cache"], caching["cache_threshold"], ratios)
    steps = call["num_inference_steps"]
    if ratios is None:
        return
    if settings is None or settings.rule != "mag":
        cache = "there is none" if settings is None else f"this one is {settings.rule}"
        raise InvalidInputError(
            f"--cache-ratios {caching['cache_ratios']} is for a cache that is mag, and {cache}: "
            "give --cache mag, or leave it out"
        )
    if steps is None:
        return
    scheduler = getattr(diffusers, ratios.scheduler, None)
    if scheduler is not None and video is None and call["strength"] is None:
        wanted = asked_steps(scheduler, ratios.steps)
        if steps != wanted:
            raise InvalidInputError(
                f"--steps {steps}, and {caching['cache_ratios']} is of {wanted}: give --steps "
                f"{wanted}, or calibrate for {steps}"
            )


def _exported_model(engine: Path | None, onnx: Path | None) -> str | None:
    from rainfusion_trt.runtime.graphs import graph_of_engine, graph_of_onnx

    if engine is not None:
        return graph_of_engine(engine).model
    return None if onnx is None else graph_of_onnx(onnx).model


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
