"""Cosmos-Predict 2.5, text, image and video to world (diffusers Cosmos2_5_PredictBasePipeline).

Self-attention is over the video alone, the text comes in by cross-attention. Known frames come in
as latents with one more channel, `condition_mask`, and keep a timestep of their own; both are
inputs of the graph. The pipeline's timesteps are noise levels, from 0 to 1.

The padding mask is a channel of zeros in every call of the pipeline. The graph has no input for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import BackendUnavailableError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import constant, first_frame

_CHANNELS = {"in_channels": 17, "out_channels": 16}  # 16 of latents and the condition mask
_FULL = {
    **_CHANNELS,
    "attention_head_dim": 128,
    "text_embed_dim": 1024,
    "rope_scale": (1.0, 3.0, 3.0),
    "extra_pos_embed_type": None,
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 100352,
    "encoder_hidden_states_channels": 1024,
}
_TINY = {
    **_FULL,
    "num_layers": 2,
    "adaln_lora_dim": 16,
    "text_embed_dim": 32,
    "crossattn_proj_in_channels": 48,
    "encoder_hidden_states_channels": 32,
    "max_size": (32, 64, 64),
}


class CosmosPredict25(VideoModel):
    """A Cosmos-Predict 2.5, told apart by its width."""

    text = "none"
    transformer_class = "CosmosTransformer3DModel"
    pipeline_class = "Cosmos2_5_PredictBasePipeline"
    guidance_batch = False
    timesteps_are_sigmas = True
    sequences = {"text_tokens": 512}  # what the pipeline pads prompts to
    inputs = (
        GraphInput("hidden_states", ("batch", "out_channels", "frames", "height", "width")),
        GraphInput(
            "timestep", ("batch", 1, "frames", 1, 1), torch.float32, constant(0.5)
        ),  # of every latent frame
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "crossattn_proj_in_channels")),
        GraphInput("condition_mask", ("batch", 1, "frames", "height", "width"), None, first_frame),
    )
    refused = {
        "block_controlnet_hidden_states": "leave out the control network, or use backend='torch'",
        "attention_mask": "leave it out",
        "fps": "leave it out, as Cosmos2_5_PredictBasePipeline does",
    }
    distinctive = (
        "in_channels",
        "out_channels",
        "num_attention_heads",
        "use_crossattn_projection",
        "controlnet_block_every_n",
        "img_context_dim_in",
    )
    remedy = "only Cosmos-Predict 2.5 is supported, neither 1 and 2 nor Transfer"

    def __init__(self, name: str, *, full: Mapping[str, Any], tiny: Mapping[str, Any]) -> None:
        self.name = name
        self.configs = {"full": {**_FULL, **full}, "tiny": {**_TINY, **tiny}}
        size = VideoSize(93, 704, 1280)
        self.defaults = GenerationDefaults(size, 36, 7.0, torch.bfloat16, 16)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(config[key] == known.get(key) for key in self.distinctive)
            for known in self.configs.values()
        )

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The base class's layout; Cosmos-Transfer's text is a pair with an image."""
        text = forward_kwargs["encoder_hidden_states"]
        if isinstance(text, tuple):
            forward_kwargs = {**forward_kwargs, "encoder_hidden_states": text[0]}
        return super().layout(transformer, forward_kwargs)

    # -- what has to be installed --------------------------------------------------------------

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:
        """Bake nothing; see that the forward to trace can run at all."""
        super().prepare(transformer, size)
        self._check_torchvision()

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """Refuse what the base class does, and a transformer in PyTorch that cannot run."""
        super().check_media(arguments, exported=exported)
        if not exported:
            self._check_torchvision()

    def _check_torchvision(self) -> None:
        from diffusers.models.transformers import transformer_cosmos

        if not hasattr(transformer_cosmos, "transforms"):  # imported where it is installed
            raise BackendUnavailableError(
                f"{self.name}: its transformer in diffusers needs torchvision: "
                "pip install torchvision"
            )

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With a padding mask of zeros, of the latents' size, which needs no resizing."""
        kwargs = super().forward_kwargs(graph_inputs)
        latents = kwargs["hidden_states"]
        kwargs["padding_mask"] = latents.new_zeros(1, 1, *latents.shape[-2:])
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Without the padding mask, which has to be zeros; one timestep becomes the frames'."""
        padding = forward_kwargs.get("padding_mask")
        if padding is not None and (padding != 0).any():
            raise UnsupportedError(
                f"{self.name}: the call has a padding_mask that is not zeros, and the graph has no "
                "input for it; leave it out, or use backend='torch'"
            )
        timestep = forward_kwargs.get("timestep")
        if timestep is not None and timestep.ndim == 1:
            latents = forward_kwargs["hidden_states"]
            frames = timestep.view(-1, 1, 1, 1, 1)
            frames = frames.expand(latents.shape[0], 1, latents.shape[2], 1, 1)
            forward_kwargs = {**forward_kwargs, "timestep": frames}
        return super().graph_inputs(forward_kwargs)


COSMOS_PREDICT_2_5_2B = CosmosPredict25(
    "cosmos-predict2.5-2b",
    full={"num_attention_heads": 16, "num_layers": 28},
    tiny={"num_attention_heads": 2},
)
COSMOS_PREDICT_2_5_14B = CosmosPredict25(
    "cosmos-predict2.5-14b",
    full={"num_attention_heads": 40, "num_layers": 36},
    tiny={"num_attention_heads": 3},
)
