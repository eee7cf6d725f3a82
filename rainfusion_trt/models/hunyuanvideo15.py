"""HunyuanVideo-1.5, from text or from an image (arXiv 2511.18870; HunyuanVideo15Pipeline).

Video and the tokens of two text encoders attend jointly, text last, in double-stream blocks.
Diffusers gathers the valid text tokens by boolean masks and gives attention a mask of S x S; a
length says the same. :meth:`HunyuanVideo15.call` is the forward without them. Tokens of the image
come first where there is an image; else their slots stay at the end as padding. Embeddings of zeros
are diffusers' sign for no image.

480p and 720p, with or without distilled guidance, are one network for each task. Step-distilled
image to video takes the timestep of the next step too (MeanFlow).
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
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.transformer import as_transformer

TEXT_TOKENS = 1000  # what the pipeline pads prompts to, for Qwen2.5-VL
TEXT_2_TOKENS = 256  # and for ByT5, which reads quoted words
IMAGE_TOKENS = 729
IMAGE_CHANNELS = 1152

_CONFIGS: dict[ConfigSize, dict[str, Any]] = {
    "full": {
        "num_layers": 54,
        "in_channels": 65,
        "out_channels": 32,
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
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
    },
}


class HunyuanVideo15(Hunyuan):
    """A HunyuanVideo-1.5, told apart by its task.

    Parameters
    ----------
    image
        Whether it is of image to video, so that its graph takes the image's embeddings.
    meanflow
        Whether its graph takes the timestep of the next step.
    """

    masks = ("encoder_attention_mask", "encoder_attention_mask_2")
    transformer_class = "HunyuanVideo15Transformer3DModel"
    vae_pixels = 16
    patch_pixels = 1
    token_cuts = TokenCuts({("transformer_blocks.0", "hidden_states"): 1}, outputs={"rope": 0})
    distinctive = (
        "task_type",
        "use_meanflow",
        "in_channels",
        "out_channels",
        "image_embed_dim",
        "patch_size_t",
        "patch_size",
    )
    unseen = "its task (task_type)"
    remedy = (
        "choose the model it belongs to (super-resolution and step-distilled text to video are not "
        "supported)"
    )
    defaults = GenerationDefaults(VideoSize(121, 720, 1280), 50, 6.0, torch.bfloat16, 24)

    def __init__(self, name: str, *, image: bool = False, meanflow: bool = False) -> None:
        self.name = name
        self.image = image
        self.meanflow = meanflow
        self.pipeline_class = f"HunyuanVideo15{'ImageToVideo' if image else ''}Pipeline"
        task = {"task_type": "i2v" if image else "t2v", "use_meanflow": meanflow}
        self.configs = {size: {**config, **task} for size, config in _CONFIGS.items()}
        refused = ("attention_kwargs",) if meanflow else ("attention_kwargs", "timestep_r")
        self.refused = dict.fromkeys(refused, "leave it out")
        self.inputs = (
            GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
            GraphInput("timestep", ("batch",), None, constant(500.0)),
            *(
                given
                for end, tokens in (("", TEXT_TOKENS), ("_2", TEXT_2_TOKENS))
                for given in (
                    GraphInput(
                        f"encoder_hidden_states{end}", ("batch", tokens, f"text_embed{end}_dim")
                    ),
                    GraphInput(
                        f"encoder_attention_mask{end}", ("batch", tokens), torch.int32, prompt_masks
                    ),
                )
            ),
        )
        if image:
            self.inputs += (GraphInput("image_embeds", ("batch", IMAGE_TOKENS, IMAGE_CHANNELS)),)
        if meanflow:  # there is one of 480p alone
            size = VideoSize(121, 480, 848)
            self.defaults = replace(self.defaults, size=size)
            self.inputs += (GraphInput("timestep_r", ("batch",), None, constant(480.0)),)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["task_type"] == ("i2v" if self.image else "t2v")
            and config["use_meanflow"] == self.meanflow
            # The latents, those of the image (else zeros) and a mask.
            and config["in_channels"] == 2 * config["out_channels"] + 1
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
        assert valid is not None
        # A graph of text to video has no image, and no comparison to find that out.
        if image is not None and (self.image or not torch.compiler.is_exporting()):
            valid = valid + slots * _is_image(image).to(torch.int32)
        return replace(layout, kv_len=valid, text_tokens=layout.text_tokens + slots)

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """For text to video with image embeddings of zeros."""
        kwargs = super().forward_kwargs(graph_inputs)
        if not self.image:
            hidden_states = graph_inputs["hidden_states"]
            shape = (hidden_states.shape[0], IMAGE_TOKENS, IMAGE_CHANNELS)
            kwargs["image_embeds"] = hidden_states.new_zeros(shape)
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """For text to video without the image embeddings, which then have to be zeros."""
        image = forward_kwargs.get("image_embeds")
        if not self.image and image is not None and _is_image(image):
            raise UnsupportedError(
                f"{self.name}: the call has an image in its image_embeds, and this graph is of "
                "text to video; leave the image out, or export an image-to-video checkpoint"
            )
        return super().graph_inputs(forward_kwargs)

    def call(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """The transformer's forward without branches on values.

        Valid tokens come first by a product with a matrix of zeros and ones, which is exact. Slots
        behind them differ from diffusers', and nothing reads them.
        """
        parts = as_transformer(transformer)
        hidden_states = forward_kwargs["hidden_states"]
        timestep = forward_kwargs["timestep"]
        batch, _, frames, height, width = hidden_states.shape
        rotary = parts.rope(hidden_states)
        temb = parts.time_embed(timestep, timestep_r=forward_kwargs.get("timestep_r"))
        video = parts.x_embedder(hidden_states)

        mask = forward_kwargs["encoder_attention_mask"]
        kind = parts.cond_type_embed.weight
        prompt = parts.context_embedder(forward_kwargs["encoder_hidden_states"], timestep, mask)
        quoted = parts.context_embedder_2(forward_kwargs["encoder_hidden_states_2"])
        tokens = [quoted + kind[1], prompt + kind[0]]
        valid = [forward_kwargs["encoder_attention_mask_2"], mask]
        image = forward_kwargs["image_embeds"]
        if self.image:
            tokens.insert(0, parts.image_embedder(image) + kind[2])
            valid.insert(0, _is_image(image).to(mask.dtype).expand(image.shape[:2]))
        slots = IMAGE_TOKENS + TEXT_2_TOKENS + TEXT_TOKENS
        all_valid = torch.cat(valid, dim=1).bool()
        text, text_mask = _valid_first(torch.cat(tokens, dim=1), all_valid, slots)

        for block in parts.transformer_blocks:
            video, text = block(video, text, temb, text_mask, rotary)
        video = parts.proj_out(parts.norm_out(video, temb))
        return video.reshape(batch, frames, height, width, -1).permute(0, 4, 1, 2, 3)


def _is_image(embeddings: Tensor) -> Tensor:
    """bool []: whether these are of an image; zeros are diffusers' sign for none."""
    return embeddings.abs().amax(dim=(0, 1, 2)) > 0


def _valid_first(tokens: Tensor, valid: Tensor, slots: int) -> tuple[Tensor, Tensor]:
    """Valid tokens in their order at the front of [B, slots, C], zeros behind; and their mask."""
    counted = valid.to(torch.int32).cumsum(1, dtype=torch.int32)
    places = torch.arange(slots, dtype=torch.int32, device=tokens.device)
    chosen = (counted[:, None] - 1 == places[None, :, None]) & valid[:, None]
    ordered = chosen.to(tokens.dtype) @ torch.where(valid[..., None], tokens, 0.0)
    return ordered, places < counted[:, -1:]


HUNYUANVIDEO_1_5 = HunyuanVideo15("hunyuanvideo-1.5")
HUNYUANVIDEO_1_5_I2V = HunyuanVideo15("hunyuanvideo-1.5-i2v", image=True)
HUNYUANVIDEO_1_5_I2V_STEP_DISTILLED = HunyuanVideo15(
    "hunyuanvideo-1.5-i2v-step-distilled", image=True, meanflow=True
)
