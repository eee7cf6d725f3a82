"""HunyuanVideo-1.5, text to video (arXiv 2511.18870; diffusers HunyuanVideo15Pipeline).

Video and the tokens of two text encoders attend jointly, text last, in double-stream blocks.
Diffusers gathers the valid text tokens by boolean masks and gives attention a mask of S x S; a
length says the same. :meth:`HunyuanVideo15.call` is the forward without them. The slots of image
tokens, which text to video leaves empty, stay at the end as padding. With an image they come first,
as diffusers has them; only PyTorch runs that, as graphs are of text to video.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    ConfigSize,
    GenerationDefaults,
    GraphInput,
    VideoSize,
)
from rainfusion_trt.models.examples import constant, prompt_masks
from rainfusion_trt.models.hunyuan import Hunyuan
from rainfusion_trt.models.transformer import as_transformer

TEXT_TOKENS = 1000  # what the pipeline pads prompts to, for Qwen2.5-VL
TEXT_2_TOKENS = 256  # and for ByT5, which reads quoted words
IMAGE_TOKENS = 729
IMAGE_CHANNELS = 1152

_CONFIGS: dict[ConfigSize, dict[str, Any]] = {
    "full": {
        "num_layers": 54,
        "in_channels": 65,
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
        "task_type": "t2v",
    },
    "tiny": {
        "num_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "rope_axes_dim": (8, 28, 28),
        "in_channels": 9,
        "out_channels": 4,
        "text_embed_dim": 32,
        "text_embed_2_dim": 24,
        "task_type": "t2v",
    },
}


class HunyuanVideo15(Hunyuan):
    """HunyuanVideo-1.5, told apart by its task."""

    name = "hunyuanvideo-1.5"
    inputs = (
        GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
        GraphInput("timestep", ("batch",), None, constant(500.0)),
        GraphInput("encoder_hidden_states", ("batch", TEXT_TOKENS, "text_embed_dim")),
        GraphInput("encoder_attention_mask", ("batch", TEXT_TOKENS), torch.int32, prompt_masks),
        GraphInput("encoder_hidden_states_2", ("batch", TEXT_2_TOKENS, "text_embed_2_dim")),
        GraphInput("encoder_attention_mask_2", ("batch", TEXT_2_TOKENS), torch.int32, prompt_masks),
    )
    refused = dict.fromkeys(("attention_kwargs", "timestep_r"), "leave it out")
    masks = ("encoder_attention_mask", "encoder_attention_mask_2")
    configs = _CONFIGS
    transformer_class = "HunyuanVideo15Transformer3DModel"
    pipeline_class = "HunyuanVideo15Pipeline"
    vae_pixels = 16
    patch_pixels = 1
    distinctive = ("task_type", "use_meanflow", "image_embed_dim", "patch_size_t", "patch_size")
    remedy = "only text-to-video checkpoints are supported"
    defaults = GenerationDefaults(VideoSize(121, 720, 1280), 50, 6.0, torch.bfloat16, 24)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["task_type"] == "t2v"
            and not config["use_meanflow"]
            and config["image_embed_dim"] == IMAGE_CHANNELS
            and (config["patch_size_t"], config["patch_size"])
            == (self.patch_frames, self.patch_pixels)
        )

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """With the slots of image tokens, which are valid where there is an image."""
        layout = super().layout(transformer, forward_kwargs)
        image = forward_kwargs.get("image_embeds")
        slots = IMAGE_TOKENS if image is None else image.shape[1]
        valid = layout.kv_len
        if image is not None and not torch.compiler.is_exporting():  # no graph has an image
            valid = valid + slots * (image != 0).any()
        return replace(layout, kv_len=valid, text_tokens=layout.text_tokens + slots)

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With image embeddings of zeros, diffusers' sign for no image."""
        hidden_states = graph_inputs["hidden_states"]
        shape = (hidden_states.shape[0], IMAGE_TOKENS, IMAGE_CHANNELS)
        return {
            **super().forward_kwargs(graph_inputs),
            "image_embeds": hidden_states.new_zeros(shape),
        }

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Without the image embeddings, which have to be zeros: the graph has no image."""
        image = forward_kwargs.get("image_embeds")
        if image is not None and (image != 0).any():
            raise UnsupportedError(
                f"{self.name}: the call has an image in its image_embeds, and graphs are of "
                "text to video; leave the image out, or use backend='torch'"
            )
        return super().graph_inputs(forward_kwargs)

    def call(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """The transformer's forward for text to video, without branches on values.

        Valid text tokens come first by a product with a matrix of zeros and ones, which is exact.
        Slots behind them differ from diffusers', and nothing reads them.
        """
        parts = as_transformer(transformer)
        hidden_states = forward_kwargs["hidden_states"]
        timestep = forward_kwargs["timestep"]
        batch, _, frames, height, width = hidden_states.shape
        rotary = parts.rope(hidden_states)
        temb = parts.time_embed(timestep)
        video = parts.x_embedder(hidden_states)

        mask = forward_kwargs["encoder_attention_mask"]
        kind = parts.cond_type_embed.weight
        prompt = parts.context_embedder(forward_kwargs["encoder_hidden_states"], timestep, mask)
        quoted = parts.context_embedder_2(forward_kwargs["encoder_hidden_states_2"])
        tokens = torch.cat([quoted + kind[1], prompt + kind[0]], dim=1)
        valid = torch.cat([forward_kwargs["encoder_attention_mask_2"], mask], dim=1).bool()
        text, text_mask = _valid_first(tokens, valid, tokens.shape[1] + IMAGE_TOKENS)

        for block in parts.transformer_blocks:
            video, text = block(video, text, temb, text_mask, rotary)
        video = parts.proj_out(parts.norm_out(video, temb))
        return video.reshape(batch, frames, height, width, -1).permute(0, 4, 1, 2, 3)


def _valid_first(tokens: Tensor, valid: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Valid tokens in their order at the front of [B, slots, C], zeros behind; and their mask."""
    counted = valid.to(torch.int32).cumsum(1, dtype=torch.int32)
    places = torch.arange(slots, dtype=torch.int32, device=tokens.device)
    chosen = (counted[:, None] - 1 == places[None, :, None]) & valid[:, None]
    ordered = chosen.to(tokens.dtype) @ torch.where(valid[..., None], tokens, 0.0)
    return ordered, places < counted[:, -1:]


HUNYUANVIDEO_1_5 = HunyuanVideo15()
