"""LTX-2 and LTX-2.3, video with sound (arXiv 2601.03233; diffusers LTX2Pipeline and others).

Two streams of packed tokens, each with self-attention and text by cross-attention, attend to each
other. Only self-attention of the video is sparse; that of the sound and all that crosses is exact.
The graph takes coordinates of both streams and a timestep for every token of them, and gives both
samples. LTX-2.5 is LTX-2.3 here; its marks of keyframes only reach PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, NotSparseError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    ConfigSize,
    GenerationDefaults,
    GraphInput,
    VideoSize,
)
from rainfusion_trt.models.examples import constant, prompt_masks
from rainfusion_trt.models.inputs import extent_of
from rainfusion_trt.models.layout import token_grid
from rainfusion_trt.models.ltx import PackedLtx, steps_from_zero
from rainfusion_trt.models.ltx_conditions import frames_behind
from rainfusion_trt.models.model_clips import TextBounds

TEXT_TOKENS = 1024  # what LTX2Pipeline pads prompts to

_SHAPES = {
    "in_channels": 128,
    "audio_in_channels": 128,
    "caption_channels": 3840,
    "cross_attention_dim": 4096,
    "audio_cross_attention_dim": 2048,
    "attention_head_dim": 128,
    "vae_scale_factors": (8, 32, 32),
    "audio_scale_factor": 4,
    "audio_sampling_rate": 16000,
    "audio_hop_length": 160,
    "num_layers": 48,
    "rope_type": "split",
}
_TINY = {
    **_SHAPES,
    "in_channels": 8,
    "out_channels": 8,
    "audio_in_channels": 6,
    "audio_out_channels": 6,
    "num_attention_heads": 2,
    "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 16,
    "caption_channels": 24,
    "cross_attention_dim": 256,
    "audio_cross_attention_dim": 32,
    "num_layers": 2,
}
# What LTX-2.3 has beside LTX-2: timesteps reach the text, gates, guidance without attention.
_MODULATED = {
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "gated_attn": True,
    "audio_gated_attn": True,
    "perturbed_attn": True,
    "use_prompt_embeddings": False,
}
# Arguments for which no graph is, what they are where they change nothing, and what to do.
_PYTORCH_ONLY = {
    "isolate_modalities": "pass modality_scale=1 and audio_modality_scale=1",
    "spatio_temporal_guidance_blocks": "pass stg_scale=0 and audio_stg_scale=0",
    "perturbation_mask": "pass stg_scale=0 and audio_stg_scale=0",
    "video_self_attention_mask": "leave the conditions out",
    "video_keyframes_mask": "leave the keyframes out",
}
# Scales of guidance by such forwards, and up to which there are none.
_NO_GUIDANCE = {
    "stg_scale": 0,
    "audio_stg_scale": 0,
    "modality_scale": 1,
    "audio_modality_scale": 1,
}


class Ltx2(PackedLtx):
    """LTX-2 or LTX-2.3, told apart by whether timesteps modulate the text."""

    transformer_class = "LTX2VideoTransformer3DModel"
    pipeline_class = "LTX2Pipeline"
    other_pipelines = (
        "LTX2ImageToVideoPipeline",
        "LTX2ConditionPipeline",
        "LTX2InContextPipeline",
        "LTX2HDRPipeline",
    )
    outputs = ("sample", "audio_sample")
    noisy_inputs = ("hidden_states", "audio_hidden_states")
    beside = "last"
    condition_frames = staticmethod(frames_behind)
    # Of the usual clip; the sound has 25 a second.
    sequences = {"text_tokens": TEXT_TOKENS, "audio_tokens": 126, "packed_tokens": 6144}
    refused = {"attention_kwargs": "leave it out"}
    tiny_size = VideoSize(17, 128, 192)  # 3 x 4 x 6 tokens, 18 of sound
    distinctive = ("attention_head_dim", "cross_attn_mod", "audio_cross_attn_mod")
    remedy = "choose the model it belongs to"

    def __init__(self, name: str, *, aliases: tuple[str, ...], modulated: bool) -> None:
        self.name = name
        self.aliases = aliases
        self.modulated = modulated
        self.defaults = GenerationDefaults(VideoSize(121, 512, 768), 30, 3.0, torch.bfloat16, 24)
        more = _MODULATED if modulated else {}
        self.configs: dict[ConfigSize, dict[str, Any]] = {
            "full": {**_SHAPES, **more},
            "tiny": {**_TINY, **more},
        }
        # LTX-2.3 gets features of the width of its attention, LTX-2 projects them itself.
        text = ("cross_attention_dim", "audio_cross_attention_dim")
        text = text if modulated else ("caption_channels", "caption_channels")
        self.inputs = (
            GraphInput("hidden_states", ("batch", "packed_tokens", "in_channels")),
            GraphInput("audio_hidden_states", ("batch", "audio_tokens", "audio_in_channels")),
            GraphInput("encoder_hidden_states", ("batch", "text_tokens", text[0])),
            GraphInput("audio_encoder_hidden_states", ("batch", "text_tokens", text[1])),
            GraphInput("encoder_attention_mask", ("batch", "text_tokens"), None, prompt_masks),
            GraphInput(
                "audio_encoder_attention_mask", ("batch", "text_tokens"), None, prompt_masks
            ),
            GraphInput("timestep", ("batch", "packed_tokens"), torch.float32, steps_from_zero),
            GraphInput("audio_timestep", ("batch", "audio_tokens"), torch.float32, constant(500.5)),
            *self._sigmas(),
            GraphInput("video_coords", (3, "packed_tokens", 2), torch.float32, None),
            GraphInput("audio_coords", (1, "audio_tokens", 2), torch.float32, None),
            self.grid_input,
        )

    def _sigmas(self) -> tuple[GraphInput, GraphInput]:
        """What modulates attention between the streams, and of LTX-2.3 the text.

        LTX-2.3 has one of a clip. LTX-2 was trained with the timesteps of the tokens, and its
        pipelines by default give one of a clip: its graph takes either.
        """
        if self.modulated:
            axes: tuple[tuple[str, ...], tuple[str, ...]] = (("batch",), ("batch",))
        else:
            axes = (("batch", "audio_tokens"), ("batch", "packed_tokens"))
        return (
            GraphInput("sigma", axes[0], torch.float32, constant(500.5)),
            GraphInput("audio_sigma", axes[1], torch.float32, constant(500.5)),
        )

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["attention_head_dim"] == 128
            and (config["patch_size_t"], config["patch_size"]) == (1, 1)
            and (config["audio_patch_size_t"], config["audio_patch_size"]) == (1, 1)
            and config["cross_attn_mod"] == config["audio_cross_attn_mod"] == self.modulated
        )

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The grid of the video, whose self-attention has no mask."""
        if forward_kwargs.get("video_self_attention_mask") is not None:
            raise NotSparseError(
                f"{self.name}: video_self_attention_mask weighs tokens by pairs, and RainFusion "
                "has no masks; leave it out"
            )
        return super().layout(transformer, forward_kwargs)

    # -- the graph ------------------------------------------------------------------------------

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """With as much sound as the clip is long at the pipeline's frame rate."""
        second = extent_of("audio_sampling_rate", config) / extent_of("audio_hop_length", config)
        second /= extent_of("audio_scale_factor", config)
        audio_tokens = max(1, round(size.frames / self.defaults.fps * second))
        return {**super().extents(config, size, batch), "audio_tokens": audio_tokens}

    def check_call(
        self, arguments: Mapping[str, Any], *, text_tokens: TextBounds = (None, None)
    ) -> None:
        """Also of guidance other than by the prompt, which is on by default."""
        asked = {name: arguments.get(name) for name in _NO_GUIDANCE}
        on = [
            f"{name}={value:g}"
            for name, value in asked.items()
            if value is not None and value > _NO_GUIDANCE[name]
        ]
        if on:
            known = (name for name in _NO_GUIDANCE if asked[name] is not None)
            off = ", ".join(f"{name}={_NO_GUIDANCE[name]}" for name in known)
            raise UnsupportedError(
                f"{self.name}: guidance by {', '.join(on)} takes forwards that the exported graph "
                f"is not of; pass {off}, or use backend='torch'"
            )

    def parts(self, config: Mapping[str, Any]) -> dict[str, nn.Module]:
        """The rotary embeddings, of which pipelines ask the coordinates; they have no weights."""
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        with torch.device("meta"):
            transformer = self.diffusers_class()(**{**known, "num_layers": 0})
        return {name: getattr(transformer, name) for name in ("rope", "audio_rope")}

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """The coordinates as LTX2Pipeline has them, at its frame rate."""
        parts: Any = self.parts(config)
        frames = (grid[0] - 1) * self.vae_frames + 1
        size = VideoSize(frames, grid[1] * self.vae_pixels, grid[2] * self.vae_pixels)
        sound = self.extents(config, size, 1)["audio_tokens"]
        video = parts["rope"].prepare_video_coords(1, *grid, device, fps=self.defaults.fps)
        audio = parts["audio_rope"].prepare_audio_coords(1, sound, device)
        return {"video_coords": video[0], "audio_coords": audio[0]}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Coordinates for each clip, which rotary embeddings of type "split" count."""
        kwargs = super().forward_kwargs(graph_inputs)
        batch = kwargs["hidden_states"].shape[0]
        for name in ("video_coords", "audio_coords"):
            kwargs[name] = kwargs[name][None].expand(batch, -1, -1, -1)
        kwargs["use_cross_timestep"] = True
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inverse: timesteps of all tokens of both streams, whatever form they had."""
        call = dict(forward_kwargs)
        for name, remedy in _PYTORCH_ONLY.items():
            if call.get(name) is not None and not _is_nothing(call[name]):
                raise UnsupportedError(
                    f"{self.name}: the exported graph has no input for {name}; {remedy}, or use "
                    "backend='torch'"
                )
        for name in ("timestep", "audio_hidden_states", "video_coords", "audio_coords"):
            if call.get(name) is None:
                raise InvalidInputError(
                    f"{self.name}: {name} is missing; pass what {self.pipeline_class} passes"
                )
        tokens, sound = call["hidden_states"], call["audio_hidden_states"]
        for stream in ("", "audio_"):
            name, text = f"{stream}encoder_attention_mask", call[f"{stream}encoder_hidden_states"]
            call[name] = self.mask(name, call.get(name), text)
        call["grid"] = token_grid(self.grid_of_call(call), tokens)
        for name in ("video_coords", "audio_coords"):
            call[name] = self.of_one_clip(name, call[name])
        self._set_timesteps(call, tokens, sound)
        return super().graph_inputs(call)

    def _set_timesteps(self, call: dict[str, Any], tokens: Tensor, sound: Tensor) -> None:
        """As the transformer completes and chooses them."""
        if call.get("audio_timestep") is None:
            call["audio_timestep"] = call["timestep"]
        if call.get("audio_sigma") is None:
            call["audio_sigma"] = call.get("sigma")
        call["timestep"] = self.per_token("timestep", call["timestep"], tokens)
        call["audio_timestep"] = self.per_token("audio_timestep", call["audio_timestep"], sound)
        crossed = bool(call.get("use_cross_timestep"))
        if not crossed and self.modulated:
            raise UnsupportedError(
                f"{self.name}: the exported graph is of use_cross_timestep=True, the way of this "
                "model; pass that to the pipeline, or use backend='torch'"
            )
        if not crossed:
            call["sigma"], call["audio_sigma"] = call["audio_timestep"], call["timestep"]
        for name in ("sigma", "audio_sigma"):
            if call.get(name) is None:
                raise InvalidInputError(
                    f"{self.name}: {name} is missing; pass what {self.pipeline_class} passes"
                )
        if not self.modulated:
            call["sigma"] = self.per_token("sigma", call["sigma"], sound)
            call["audio_sigma"] = self.per_token("audio_sigma", call["audio_sigma"], tokens)

    def result(self, outputs: tuple[Tensor, ...]) -> Any:
        from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput

        return AudioVisualModelOutput(*outputs)


def _is_nothing(value: Any) -> bool:
    return value is False or (isinstance(value, (list, tuple)) and not value)


LTX_2 = Ltx2("ltx-2", aliases=("ltx2",), modulated=False)
LTX_2_3 = Ltx2("ltx-2.3", aliases=("ltx2.3",), modulated=True)
