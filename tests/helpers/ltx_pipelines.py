"""Tiny diffusers pipelines that condition LTX on frames, and the calls that they make."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, LTX2ConditionPipeline, LTXConditionPipeline
from diffusers.pipelines.ltx.pipeline_ltx_condition import LTXVideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from PIL import Image
from torch import Tensor, nn

from rainfusion_trt.runtime.base import TensorInfo

Conditions = tuple[tuple[int, int], ...]  # the latent frame, and how many pixel frames
CHANNELS = 8  # of the tiny configurations' latents


class Encoder(nn.Module):
    """In the place of the VAE: averages of 8 x 32 x 32 pixels, in as many channels as latents."""

    device, dtype = torch.device("cpu"), torch.float32
    spatial_compression_ratio, temporal_compression_ratio = 32, 8
    latents_mean, latents_std = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    config = SimpleNamespace(scaling_factor=1.0, timestep_conditioning=False)

    def encode(self, pixels: Tensor) -> Any:
        frames, height, width = pixels.shape[2:]
        size = ((frames - 1) // 8 + 1, height // 32, width // 32)
        mixed = torch.linspace(-2, 2, CHANNELS * pixels.shape[1]).reshape(CHANNELS, -1)
        pooled = F.adaptive_avg_pool3d(pixels, size)
        return SimpleNamespace(latents=torch.einsum("oc,bcthw->bothw", mixed, pooled))


class Connectors(nn.Module):
    """In the place of what makes each stream's text of the encoder's."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, config: Any) -> None:
        super().__init__()
        own = config.use_prompt_embeddings  # projected by the transformer
        self.widths = [config.caption_channels] * 2 if own else _widths(config)

    def forward(self, embeds: Tensor, mask: Tensor, padding_side: str) -> tuple[Tensor, ...]:
        means = embeds.mean(-1, keepdim=True)
        return *(means.expand(-1, -1, width) for width in self.widths), mask


def _widths(config: Any) -> list[int]:
    return [config.cross_attention_dim, config.audio_cross_attention_dim]


def pictures(count: int, seed: int, size: tuple[int, int]) -> list[Image.Image]:
    """Pictures of noise in large spots, [height, width]."""
    generator = torch.Generator().manual_seed(seed)
    spots = torch.rand(count, 3, *(extent // 16 for extent in size), generator=generator)
    pixels = F.interpolate(spots, size=size).mul(255).byte().permute(0, 2, 3, 1)
    return [Image.fromarray(frame.numpy()) for frame in pixels]


def text(width: int, tokens: int = 128) -> dict[str, Tensor]:
    """Two prompts' embeddings, the text's mask over a few tokens."""
    embeds = torch.randn(2, tokens, width, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(tokens) < 7)[None]
    return {
        "prompt_embeds": embeds[:1],
        "negative_prompt_embeds": embeds[1:],
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
    }


def taking(*rooms: tuple[tuple[int, int, int], int | None]) -> list[dict[str, TensorInfo]]:
    """Profiles of a graph, by grid and the most tokens."""
    kind = torch.float32
    return [
        {
            "grid": TensorInfo("grid", kind, grid, grid),
            "hidden_states": TensorInfo("hidden_states", kind, (1, 1, 8), (2, most, 8)),
        }
        for grid, most in rooms
    ]


def condition_pipeline(transformer: nn.Module) -> Any:
    """LTX's or LTX-2's pipeline of that transformer, without what comes before and after it."""
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    if "audio_in_channels" not in transformer.config:
        scheduler = FlowMatchEulerDiscreteScheduler()
        pipe: Any = LTXConditionPipeline(scheduler, None, None, None, transformer)
    else:
        config = transformer.config
        parts = (Connectors(config), transformer, None)
        pipe = LTX2ConditionPipeline(scheduler, None, None, None, None, *parts)
        pipe.audio_latent_channels = config.audio_in_channels // 2
        pipe.audio_mel_bins = 2 * pipe.audio_vae_mel_compression_ratio
        mean = torch.zeros(config.audio_in_channels)
        pipe.audio_vae = SimpleNamespace(latents_mean=mean, latents_std=mean + 1)
    pipe.vae = Encoder()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments_of(pipe: Any, size: Any, conditions: Conditions) -> dict[str, Any]:
    """Of a call of `condition_pipeline` for one step, with pictures and clips as conditions."""
    given: list[Any] = []
    for seed, (frame, count) in enumerate(conditions):
        frames = pictures(count, seed, (size.height, size.width))
        if isinstance(pipe, LTX2ConditionPipeline):
            given.append(LTX2VideoCondition(frames if count > 1 else frames[0], frame, crf=0))
        else:
            known = {"video": frames} if count > 1 else {"image": frames[0]}
            given.append(LTXVideoCondition(**known, frame_index=8 * frame))
    arguments = {
        **text(pipe.transformer.config.caption_channels),
        "num_frames": size.frames,
        "height": size.height,
        "width": size.width,
        "num_inference_steps": 1,
        "output_type": "latent",
        "generator": torch.Generator().manual_seed(0),
    }
    if isinstance(pipe, LTX2ConditionPipeline):  # no guidance but by the prompt
        arguments |= {"stg_scale": 0.0, "audio_stg_scale": 0.0}
        arguments |= {"modality_scale": 1.0, "audio_modality_scale": 1.0}
    return {**arguments, "conditions": given or None}


def call_with_conditions(transformer: nn.Module, size: Any, conditions: Conditions) -> Any:
    """Keyword arguments of the forward that the pipeline makes in its only step."""
    calls: list[dict[str, Any]] = []

    def keep(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        calls.append({name: value for name, value in kwargs.items() if name != "return_dict"})

    pipe = condition_pipeline(transformer)
    handle = transformer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        pipe(**arguments_of(pipe, size, conditions))
    finally:
        handle.remove()
    (call,) = calls
    return call
