"""Wan 2.1 VACE: video from a control video, a mask and reference images (arXiv 2503.07598).

A control branch of blocks of its own, with the same self-attention, runs before the main blocks and
adds a hint to some of them, times a scale. Each reference image is one latent frame more, in front
of the clip in the latents and in the control: a clip of 81 frames with one reference is the graph's
of 85, and `sink_frames` has to count the references for the clip's first frame to be exact as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import ConfigSize, GenerationDefaults, GraphInput, VideoSize
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.wan import FULL_1_3B, FULL_14B, SIZE_480P, SIZE_720P, Wan

_CONTROL = "control_hidden_states"


class WanVace(Wan):
    """A Wan with a control branch, whose self-attention is RainFusion's too."""

    transformer_class = "WanVACETransformer3DModel"
    pipeline_class = "WanVACEPipeline"
    distinctive = (*Wan.distinctive, "vace_in_channels")

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        control = ("batch", "vace_in_channels", "frames", "height", "width")
        self.inputs += (
            GraphInput(_CONTROL, control),
            GraphInput(f"{_CONTROL}_scale", ("vace_layers",), None, constant(1.0)),  # one for each
        )

    def _token_cuts(self) -> TokenCuts:
        """The control branch has tokens of its own, and each of its blocks gets the video's too."""
        arguments = {
            ("vace_blocks.*", "hidden_states"): 1,
            ("vace_blocks.0", "control_hidden_states"): 1,
            ("blocks.0", "hidden_states"): 1,
        }
        return TokenCuts(arguments, outputs={"rope": 1})

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Fewer layers have the hints of those that are left."""
        config = super().config(size, layers=layers)
        depth = config["num_layers"]
        config["vace_layers"] = [layer for layer in config["vace_layers"] if layer < depth]
        return config

    def attention_count(self, config: Mapping[str, Any]) -> int:
        """Of the main blocks and the control branch."""
        return super().attention_count(config) + len(config["vace_layers"])

    def clip_of_graph(self, size: VideoSize, arguments: Mapping[str, Any]) -> VideoSize:
        """Without the latent frames of the references, which the pipeline puts in front."""
        images = arguments.get("reference_images")
        if images and isinstance(images, (list, tuple)) and isinstance(images[0], (list, tuple)):
            images = images[0]  # of the only clip of a batch
        count = len(images) if isinstance(images, (list, tuple)) else int(images is not None)
        return self._without_latents(size, count, "reference_images")

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """The control video has the size of the clip, and for a graph its frames.

        The pipeline makes a larger one smaller, never a smaller one larger, and encodes all of its
        frames; the transformer pads what is missing behind the last one.
        """
        video = arguments.get("video")
        if not video or isinstance(video[0], list):  # a batch, which the pipeline refuses
            return
        height, width = arguments["height"], arguments["width"]
        unit = self.vae_pixels * self.patch_pixels
        size = video[0].height, video[0].width
        if size[0] * size[1] > height * width:
            scale = min(width / size[1], height / size[0])
            size = int(size[0] * scale), int(size[1] * scale)
        if tuple(extent // unit * unit for extent in size) != (height, width):
            raise InvalidInputError(
                f"video has {video[0].width}x{video[0].height} pixels (width x height) and the "
                f"clip {width}x{height}, which it controls pixel by pixel: scale it to that"
            )
        frames = arguments["num_frames"] // self.vae_frames * self.vae_frames + 1
        if len(video) > frames or (exported and len(video) != frames):
            raise InvalidInputError(
                f"video has {len(video)} frames and the clip {frames}: give a control video of as "
                "many frames as num_frames"
            )

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Also check that the control is as long as the latents.

        Diffusers pads a shorter one behind its patches, which no input of the graph can say.
        """
        control, latents = forward_kwargs.get(_CONTROL), forward_kwargs["hidden_states"]
        if control is not None and control.shape[2:] != latents.shape[2:]:
            raise InvalidInputError(
                f"{self.name}: {_CONTROL} has {list(control.shape[2:])} latent frames, rows and "
                f"columns, hidden_states {list(latents.shape[2:])}; give a control video of the "
                "frames and the size of the clip"
            )
        return super().graph_inputs(forward_kwargs)

    def call(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> Tensor | tuple[Tensor, ...]:
        """The transformer's forward, told that nothing is missing of the control."""
        control, latents = forward_kwargs[_CONTROL], forward_kwargs["hidden_states"]
        for extent, same in zip(control.shape[2:], latents.shape[2:], strict=True):
            torch._check(extent == same)
        return super().call(transformer, forward_kwargs)


_CONTROL_CHANNELS = {"vace_in_channels": 96}  # what is kept, what is to change, 64 of the mask
_TINY = {
    **_CONTROL_CHANNELS,
    "in_channels": 16,
    "out_channels": 16,
    "vace_layers": [0, 1],
}

WAN_2_1_VACE_1_3B = WanVace(
    "wan2.1-vace-1.3b",
    full={**FULL_1_3B, **_CONTROL_CHANNELS, "vace_layers": list(range(0, 30, 2))},
    tiny={**_TINY, "num_attention_heads": 2},
    defaults=GenerationDefaults(SIZE_480P, 50, 5.0, torch.bfloat16, 16),
)
WAN_2_1_VACE_14B = WanVace(
    "wan2.1-vace-14b",
    full={**FULL_14B, **_CONTROL_CHANNELS, "vace_layers": list(range(0, 40, 5))},
    tiny={**_TINY, "num_attention_heads": 3},
    defaults=GenerationDefaults(SIZE_720P, 50, 5.0, torch.bfloat16, 16),
)
