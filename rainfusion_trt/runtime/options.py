"""Options of ``rainfusion-trt run``: one name each, with type, spelling and help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rainfusion_trt.operator.exact_frames import TEXT_FORM
from rainfusion_trt.operator.settings import EIGHT_BIT_GPUS, METHODS, PRECISIONS, AttentionSettings
from rainfusion_trt.presets import PRESETS
from rainfusion_trt.step_cache.settings import CACHES

Prompt = Annotated[str, typer.Option(help="What the video shows.")]
Checkpoint = Annotated[
    str, typer.Option(help="Diffusers directory or hub id: text encoder, VAE, scheduler.")
]
Output = Annotated[Path, typer.Option(help="The mp4 file.")]
Transformer = Annotated[
    Path | None, typer.Option(help="File with its weights instead, .safetensors or .gguf.")
]
Model = Annotated[str | None, typer.Option(help="Such as cogvideox (default: engine's).")]
Engine = Annotated[Path | None, typer.Option(help="Folder of build-engine.")]
Onnx = Annotated[Path | None, typer.Option(help="Exported model, for ONNX Runtime.")]
Second = Annotated[Path | None, typer.Option(help="Of the second transformer.")]
Backend = Annotated[str, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or torch.")]
Image = Annotated[Path | None, typer.Option(help="Picture that the video begins with.")]
LastImage = Annotated[Path | None, typer.Option(help="Picture that it ends with.")]
Video = Annotated[Path | None, typer.Option(help="Video to start from.")]
ControlVideo = Annotated[Path | None, typer.Option(help="Video to follow (CogVideoX Fun).")]
PoseVideo = Annotated[Path | None, typer.Option(help="Poses (Wan Animate).")]
FaceVideo = Annotated[Path | None, typer.Option(help="Faces (Wan Animate).")]
BackgroundVideo = Annotated[Path | None, typer.Option(help="Background, with --mode replace.")]
MaskVideo = Annotated[Path | None, typer.Option(help="What is replaced, with --mode replace.")]
Mode = Annotated[str | None, typer.Option(help="animate or replace (Wan Animate).")]
Mask = Annotated[Path | None, typer.Option(help="Video of what is made anew, white (Wan VACE).")]
ReferenceImage = Annotated[
    list[Path] | None, typer.Option(help="Picture of what it shows, repeatable (Wan VACE).")
]
Strength = Annotated[
    float | None,
    typer.Option(help="How much of --video is made anew, 0 to 1 (default: model's)."),
]
NegativePrompt = Annotated[str | None, typer.Option(help="What it does not show.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps (default: model's).", min=1)]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale (default: model's).")]
Frames = Annotated[int | None, typer.Option(help="Frames (default: engine's).")]
Height = Annotated[int | None, typer.Option(help="Pixels (default: engine's).")]
Width = Annotated[int | None, typer.Option(help="Pixels (default: engine's).")]
Preset = Annotated[
    str | None, typer.Option(help=f"{', '.join(PRESETS)}: sets method, sparsity and schedule.")
]
Method = Annotated[
    str | None,
    typer.Option(
        help=f"{', '.join(METHODS)}; an engine's is fixed (default: preset's or engine's, else "
        f"{AttentionSettings.method})."
    ),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Recall from which a head counts as spatial or temporal; an engine's is fixed "
        f"(default: engine's, else {AttentionSettings.alpha})."
    ),
]
SinkFrames = Annotated[
    int | None,
    typer.Option(
        help="Leading latent frames that all tokens attend to; an engine's is fixed (default: "
        f"engine's, else {AttentionSettings.sink_frames})."
    ),
]
LastSinkFrames = Annotated[
    int | None,
    typer.Option(
        help="Latent frames at the end that all tokens attend to, 1 for --last-image; an engine's "
        "is fixed (default: engine's, else 0)."
    ),
]
ExactFrames = Annotated[
    list[str] | None,
    typer.Option(
        metavar=TEXT_FORM,
        help="Latent frames anywhere in the clip that are exact, for pictures in the middle; may "
        "be given several times; an engine's are fixed (default: engine's, else none).",
    ),
]
AttentionPrecision = Annotated[
    str | None,
    typer.Option(
        help=f"{' or '.join(PRECISIONS)}, of attention's products; 8bit is for {EIGHT_BIT_GPUS} "
        "(default: engine's, else 16bit)."
    ),
]
First16bit = Annotated[
    float | None,
    typer.Option("--first-16bit", help="Share of first steps kept in 16 bits, with 8bit."),
]
Last16bit = Annotated[
    float | None,
    typer.Option("--last-16bit", help="Share of last steps kept in 16 bits, with 8bit."),
]
Sparsity = Annotated[
    float | None,
    typer.Option(help="Share of pairs left out; 0 is dense (default: preset's, else 0.5)."),
]
DenseFraction = Annotated[
    float | None,
    typer.Option(help="Share of first steps kept dense (default: preset's, else 0.1)."),
]
DenseLayer = Annotated[
    list[int] | None,
    typer.Option(help="Number of a layer that stays dense, from 0, repeatable."),
]
Cache = Annotated[
    str | None, typer.Option(help=f"{', '.join(CACHES)}: skip steps that change little.")
]
CacheThreshold = Annotated[
    float | None,
    typer.Option(help="Error that may gather over skipped steps; 0 skips none (default: cache's)."),
]
CacheRatios = Annotated[
    Path | None, typer.Option(help="File of calibrate-cache, which --cache mag needs.")
]
Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Fps = Annotated[int | None, typer.Option(help="Frames per second (default: model's).")]
Overwrite = Annotated[
    bool, typer.Option(help="Replace the file even if this command has not written it.")
]
Device = Annotated[str | None, typer.Option(help="cuda or cpu (default: GPU if any).")]
CudaGraph = Annotated[bool, typer.Option(help="Replay the engine as a CUDA graph.")]
Compile = Annotated[bool, typer.Option(help="torch.compile, with the torch backend.")]
CpuOffload = Annotated[bool, typer.Option(help="Text encoder and VAE off the GPU.")]
VaeTiling = Annotated[bool, typer.Option(help="Decode in tiles: slower, less memory.")]
AllowFallback = Annotated[bool, typer.Option(help="Accept the next best backend.")]
AllowDense = Annotated[bool, typer.Option(help="Accept dense attention.")]
Profile = Annotated[bool, typer.Option(help="Print the time of every step.")]
Gpus = Annotated[int, typer.Option(help="GPUs that make the clip together.", min=1)]
SplitGuidance = Annotated[
    bool, typer.Option(help="Give the halves of guidance to two groups of the GPUs.")
]
Overlap = Annotated[
    bool,
    typer.Option(
        "--overlap",
        help="Let one half of a GPU's heads attend while the other one's tokens travel "
        "(PyTorch transformer; not measured yet).",
    ),
]
Timeout = Annotated[
    float, typer.Option(help="Seconds that a GPU waits for another one before all end.")
]
