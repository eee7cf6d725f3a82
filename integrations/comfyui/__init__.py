"""Nodes for ComfyUI; link this folder into ``custom_nodes``. docs/integrations.md says more."""

from __future__ import annotations

from typing import Any

from rainfusion_trt.integrations.comfyui import Wanted, patch
from rainfusion_trt.integrations.comfyui_engine import replace
from rainfusion_trt.operator.exact_frames import frames_of_text
from rainfusion_trt.operator.settings import EIGHT_BIT_GPUS, METHODS, PRECISIONS, AttentionSettings


class RainFusionAttention:
    """Sparse attention in a loaded video model."""

    CATEGORY = "model_patches/rainfusion"
    DESCRIPTION = "Block-sparse attention for Wan, HunyuanVideo, LTX-Video and CogVideoX."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        """Widgets and their ranges."""
        sparsity = {"default": 0.5, "min": 0.0, "max": 0.95, "step": 0.05}
        return {
            "required": {
                "model": ("MODEL",),
                "sparsity": (
                    "FLOAT",
                    {**sparsity, "tooltip": "Share that is left out; 0 is dense"},
                ),
                "method": (list(METHODS), {"default": AttentionSettings.method}),
                "dense_steps": (
                    "INT",
                    {"default": 4, "min": 0, "max": 1000, "tooltip": "Steps that stay dense first"},
                ),
                "sink_frames": (
                    "INT",
                    {
                        "default": AttentionSettings.sink_frames,
                        "min": 0,
                        "max": 64,
                        "tooltip": "Leading latent frames that all tokens attend to",
                    },
                ),
                "allow_dense": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Run what cannot be sparse dense, with a warning",
                    },
                ),
            },
            "optional": {  # workflows of older versions have none
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": AttentionSettings.precision,
                        "tooltip": f"8bit is for {EIGHT_BIT_GPUS}; dense steps are ComfyUI's own",
                    },
                ),
                "last_sink_frames": (
                    "INT",
                    {
                        "default": AttentionSettings.last_sink_frames,
                        "min": 0,
                        "max": 64,
                        "tooltip": "The same at the end: 1 for a model that gets a last picture",
                    },
                ),
                "exact_frames": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": "Latent frames of pictures in the middle: 12, or 12 24:26",
                    },
                ),
            },
        }

    def apply(
        self,
        model: Any,
        sparsity: float,
        method: Any,
        dense_steps: int,
        sink_frames: int,
        allow_dense: bool,
        precision: Any = AttentionSettings.precision,
        last_sink_frames: int = AttentionSettings.last_sink_frames,
        exact_frames: str = "",
    ) -> tuple[Any]:
        """A patched clone of the model."""
        settings = AttentionSettings.of(
            method=method,
            sink_frames=sink_frames,
            precision=precision,
            last_sink_frames=last_sink_frames,
            exact_frames=frames_of_text(exact_frames.replace(",", " ").split()),
        )
        return (patch(model, Wanted(settings, sparsity, dense_steps, allow_dense)),)


class RainFusionEngine:
    """An engine in the place of a loaded Wan."""

    CATEGORY = "model_patches/rainfusion"
    DESCRIPTION = "A TensorRT engine, or an exported ONNX file, in the place of Wan's transformer."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802  (ComfyUI's name)
        """Widgets and their ranges."""
        attention = RainFusionAttention.INPUT_TYPES()["required"]
        file = {"default": "", "tooltip": "Folder of build-engine, or an exported .onnx file"}
        return {
            "required": {
                "model": ("MODEL",),
                "file": ("STRING", file),
                **{name: attention[name] for name in ("sparsity", "dense_steps", "allow_dense")},
            }
        }

    def apply(
        self, model: Any, file: str, sparsity: float, dense_steps: int, allow_dense: bool
    ) -> tuple[Any]:
        """A clone of the model that runs the engine."""
        made = replace(
            model, file, sparsity=sparsity, dense_steps=dense_steps, allow_dense=allow_dense
        )
        return (made,)


NODE_CLASS_MAPPINGS = {
    "RainFusionAttention": RainFusionAttention,
    "RainFusionEngine": RainFusionEngine,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "RainFusionAttention": "RainFusion attention",
    "RainFusionEngine": "RainFusion engine",
}
