"""``rainfusion-trt calibrate-cache``: a model and prompts; a small JSON for ``cache="mag"``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rainfusion_trt.operator.exact_frames import frames_of_text
from rainfusion_trt.runtime import options

Prompts = Annotated[list[str], typer.Option("--prompt", help="Of a generation, repeatable.")]
Output = Annotated[Path, typer.Option(help="The JSON file.")]


def main(
    prompt: Prompts,
    checkpoint: options.Checkpoint,
    output: Output = Path("out/cache_ratios.json"),
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
    sparsity: options.Sparsity = None,
    dense_fraction: options.DenseFraction = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    device: options.Device = None,
    cuda_graph: options.CudaGraph = False,
    compile: options.Compile = False,
    cpu_offload: options.CpuOffload = False,
    allow_dense: options.AllowDense = False,
) -> None:
    """Measure what cache="mag" needs of a model, a scheduler and a number of steps."""
    from rainfusion_trt.runtime.media import read_named

    clip = {"num_frames": frames, "height": height, "width": width, "guidance_scale": guidance}
    call = {"num_inference_steps": steps, "negative_prompt": negative_prompt, "seed": seed, **clip}
    call |= {"strength": strength, "mode": mode}
    start: dict[str, Any] = {"image": image, "last_image": last_image, "video": video}
    start |= {"control_video": control_video, "mask": mask, "reference_images": reference_image}
    start |= {"pose_video": pose_video, "face_video": face_video, "mask_video": mask_video}
    start["background_video"] = background_video
    _check(output, call, overwrite=overwrite)
    call |= read_named(start)
    chosen: dict[str, Any] = {"engine": engine, "onnx": onnx}
    chosen |= {"engine_2": engine_2, "onnx_2": onnx_2}
    chosen["transformer"] = {"transformer": transformer, "transformer_2": transformer_2}
    chosen |= {"last_sink_frames": last_sink_frames, "dense_fraction": dense_fraction}
    chosen["exact_frames"] = frames_of_text(exact_frames) if exact_frames else None
    chosen |= {"preset": preset, "method": method, "sparsity": sparsity, "backend": backend}
    made = {"device": device, "cuda_graph": cuda_graph, "compile": compile}
    made |= {"cpu_offload": cpu_offload, "allow_dense": allow_dense, "checkpoint": checkpoint}
    ratios = _measure(prompt, model, {**chosen, **made}, call)
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
