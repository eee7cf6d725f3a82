"""Denoising steps through a diffusers pipeline that needs neither text encoder nor VAE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models import VideoModel, VideoSize
from rainfusion_trt.models.allegro import TEXT_TOKENS

PROMPT_SEED = 2
PROMPT_TOKENS = 40  # of the padded prompt of a model that masks padding


def latent_pipeline(model: VideoModel, transformer: nn.Module) -> Any:
    """The model's diffusers pipeline around a transformer: prompts are embeddings, results latents.

    Raises
    ------
    UnsupportedError
        No benchmark needed this model's pipeline so far.
    """
    parts = {"tokenizer": None, "text_encoder": None, "vae": None, "transformer": transformer}
    if model.pipeline_class == "CogVideoXPipeline":
        from diffusers import CogVideoXDDIMScheduler, CogVideoXPipeline

        scheduler = CogVideoXDDIMScheduler(
            prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
        )
        pipe = CogVideoXPipeline(**parts, scheduler=scheduler)
    elif model.pipeline_class == "AllegroPipeline":
        from diffusers import AllegroPipeline, EulerAncestralDiscreteScheduler

        pipe = AllegroPipeline(**parts, scheduler=EulerAncestralDiscreteScheduler())
    else:
        raise UnsupportedError(f"{model.name}: no benchmark of {model.pipeline_class} yet")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompt_arguments(model: VideoModel, transformer: nn.Module) -> dict[str, Tensor]:
    """Seeded random text for `latent_pipeline`, and its opposite as the negative prompt."""
    network: Any = transformer  # whose configuration and place diffusers adds
    config, device, dtype = network.config, network.device, network.dtype
    masked = model.pipeline_class == "AllegroPipeline"
    shape = (
        (1, TEXT_TOKENS, config.caption_channels)
        if masked
        else (1, config.max_text_seq_length, config.text_embed_dim)
    )
    generator = torch.Generator(device).manual_seed(PROMPT_SEED)
    text = torch.randn(shape, device=device, generator=generator).to(dtype)
    arguments = {"prompt_embeds": text, "negative_prompt_embeds": -text}
    if masked:
        mask = (torch.arange(TEXT_TOKENS, device=device) < PROMPT_TOKENS).long()[None]
        arguments |= {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return arguments


@dataclass
class Run:
    """One run of a pipeline.

    Attributes
    ----------
    calls, outputs
        Its transformer's calls and outputs.
    latents
        The final latents.
    timings
        Times of every step, if `profile` was asked for.
    """

    calls: list[dict[str, Any]]
    outputs: list[Tensor]
    latents: Tensor
    timings: tuple[Any, ...]


def denoise(
    run: Callable[..., Any], transformer: nn.Module, size: VideoSize, **arguments: Any
) -> Run:
    """Run a pipeline and keep what its transformer was asked and answered."""
    calls: list[dict[str, Any]] = []
    outputs: list[Tensor] = []

    def keep(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> None:
        calls.append({name: kwargs[name] for name in kwargs if name != "return_dict"})
        outputs.append(output[0].clone())

    hook = transformer.register_forward_hook(keep, with_kwargs=True)
    try:
        result = run(
            num_frames=size.frames,
            height=size.height,
            width=size.width,
            output_type="latent",
            generator=torch.Generator("cpu").manual_seed(0),
            **arguments,
        )
    finally:
        hook.remove()
    return Run(calls, outputs, result.frames, getattr(result, "timings", ()))
