"""``rainfusion-trt run``: a text and a model on the command line, a video in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from rainfusion_trt.runtime import options

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
    backend: options.Backend = "auto",
    negative_prompt: options.NegativePrompt = None,
    steps: options.Steps = None,
    guidance: options.Guidance = None,
    frames: options.Frames = None,
    height: options.Height = None,
    width: options.Width = None,
    preset: options.Preset = None,
    method: options.Method = None,
    sparsity: options.Sparsity = None,
    dense_fraction: options.DenseFraction = None,
    dense_layer: options.DenseLayer = None,
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
) -> None:
    """Make a video from a text."""
    clip = {"num_frames": frames, "height": height, "width": width, "guidance_scale": guidance}
    call = {"num_inference_steps": steps, "negative_prompt": negative_prompt, "seed": seed, **clip}
    files = {"engine": engine, "onnx": onnx, "engine_2": engine_2, "onnx_2": onnx_2}
    schedule: dict[str, Any] = {
        "preset": preset,
        "sparsity": sparsity,
        "dense_fraction": dense_fraction,
    }
    schedule |= {"method": method, "dense_layers": dense_layer}
    allowed = {"allow_fallback": allow_fallback, "allow_dense": allow_dense}
    place = {"device": device, "cpu_offload": cpu_offload}
    faster = {"cuda_graph": cuda_graph, "compile": compile}
    _check(output, fps, call, overwrite=overwrite)
    chosen = {"checkpoint": checkpoint, "backend": backend, **files, **schedule, **allowed}
    chosen |= {**place, **faster}
    with _pipeline(model, vae_tiling=vae_tiling, **chosen) as pipeline:
        result = _video(pipeline, prompt, profile=profile, **call)
        _save(result, output, fps or pipeline.model.defaults.fps, overwrite=overwrite)
    if profile:
        _print_timings(result.timings)
    typer.echo(output)


def _check(output: Path, fps: int | None, call: dict[str, Any], *, overwrite: bool) -> None:
    """Refuse what cannot be before anything is loaded."""
    from rainfusion_trt.runtime.call_arguments import check_numbers, check_seed
    from rainfusion_trt.video import check_fps, check_target

    check_target(output, overwrite=overwrite)
    if fps is not None:
        check_fps(fps)
    check_numbers({name: value for name, value in call.items() if value is not None})
    check_seed(call["seed"])


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
    from rainfusion_trt.video import save_video

    save_video(result.frames[0], output, fps=fps, overwrite=overwrite)


def _print_timings(timings: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("step", "sparsity", "transformer ms", "step ms"):
        table.add_column(title, justify="right")
    for row in timings:
        times = (f"{row.transformer_ms:.1f}", f"{row.total_ms:.1f}")
        table.add_row(str(row.step), f"{row.sparsity:g}", *times)
    Console(stderr=True).print(table)
