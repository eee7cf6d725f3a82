"""Options that several commands have, as what they become: arguments of `Pipeline` or of a call."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rainfusion_trt.operator.exact_frames import frames_of_text
from rainfusion_trt.runtime import options


@dataclass(frozen=True)
class Graphs:
    """Engines and exported models."""

    engine: options.Engine = None
    onnx: options.Onnx = None
    engine_2: options.Second = None
    onnx_2: options.Second = None


@dataclass(frozen=True)
class Weights:
    """Weights from files."""

    transformer: options.Transformer = None
    transformer_2: options.Second = None


@dataclass(frozen=True)
class Start:
    """Pictures and videos to start from."""

    image: options.Image = None
    last_image: options.LastImage = None
    video: options.Video = None
    control_video: options.ControlVideo = None
    pose_video: options.PoseVideo = None
    face_video: options.FaceVideo = None
    background_video: options.BackgroundVideo = None
    mask_video: options.MaskVideo = None
    mode: options.Mode = None
    mask: options.Mask = None
    reference_image: options.ReferenceImage = None
    strength: options.Strength = None

    @property
    def values(self) -> dict[str, Any]:
        """Arguments of a call that are no media."""
        return {"strength": self.strength, "mode": self.mode}

    @property
    def files(self) -> dict[str, Any]:
        """Files by the argument of a call that takes their content."""
        files = {name: file for name, file in asdict(self).items() if name not in self.values}
        files["reference_images"] = files.pop("reference_image")
        return files


@dataclass(frozen=True)
class Clip:
    """The clip."""

    negative_prompt: options.NegativePrompt = None
    steps: options.Steps = None
    guidance: options.Guidance = None
    frames: options.Frames = None
    height: options.Height = None
    width: options.Width = None
    seed: options.Seed = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of a call."""
        return {
            "num_inference_steps": self.steps,
            "negative_prompt": self.negative_prompt,
            "seed": self.seed,
            "num_frames": self.frames,
            "height": self.height,
            "width": self.width,
            "guidance_scale": self.guidance,
        }


@dataclass(frozen=True)
class Attention:
    """Sparse attention."""

    preset: options.Preset = None
    method: options.Method = None
    alpha: options.Alpha = None
    sink_frames: options.SinkFrames = None
    last_sink_frames: options.LastSinkFrames = None
    exact_frames: options.ExactFrames = None
    sparsity: options.Sparsity = None
    dense_fraction: options.DenseFraction = None
    dense_layer: options.DenseLayer = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of `Pipeline`."""
        arguments = asdict(self)
        arguments["dense_layers"] = arguments.pop("dense_layer")
        arguments["exact_frames"] = frames_of_text(self.exact_frames) if self.exact_frames else None
        return arguments


@dataclass(frozen=True)
class AttentionBits:
    """Precision of attention."""

    attention_precision: options.AttentionPrecision = None
    first_16bit: options.First16bit = None
    last_16bit: options.Last16bit = None


@dataclass(frozen=True)
class Caching:
    """Step cache."""

    cache: options.Cache = None
    cache_threshold: options.CacheThreshold = None
    cache_ratios: options.CacheRatios = None


@dataclass(frozen=True)
class Place:
    """Device and speed."""

    device: options.Device = None
    cuda_graph: options.CudaGraph = False
    compile: options.Compile = False
    cpu_offload: options.CpuOffload = False
