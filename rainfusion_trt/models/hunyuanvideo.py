"""HunyuanVideo, from text or from an image (arXiv 2412.03603; diffusers HunyuanVideoPipeline).

Video and text attend jointly in double- and single-stream blocks, text last. The attention mask
only cuts the padding at the end of the text, so its length takes the mask's place. The rotary
tables are computed in the graph from the clip's shape; guidance is an input, not a second call.

From an image there are two networks. Both see the image in the text as well, as tokens of the text
encoder in front of the prompt, whose mask counts them. *Token replacement* has the image in the
place of the first latent frame, which is modulated as at timestep 0; the operator's sink frame
keeps the attention of that frame exact. *Latent concatenation* has the image and a mask as more
channels, and no embedded guidance.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import ConfigSize, GenerationDefaults, GraphInput, VideoSize
from rainfusion_trt.models.examples import constant, prompt_masks
from rainfusion_trt.models.hunyuan import Hunyuan
from rainfusion_trt.models.model_clips import TextBounds
from rainfusion_trt.models.token_cuts import TokenCuts

_CONFIGS: dict[ConfigSize, dict[str, Any]] = {
    "full": {
        "num_layers": 20,
        "num_single_layers": 40,
        "in_channels": 16,
        "out_channels": 16,
        "text_embed_dim": 4096,
        "pooled_projection_dim": 768,
    },
    "tiny": {
        "num_layers": 2,
        "num_single_layers": 2,
        "num_refiner_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 64,
        "rope_axes_dim": (8, 28, 28),
        "in_channels": 4,
        "out_channels": 4,
        "text_embed_dim": 32,
        "pooled_projection_dim": 16,
    },
}
_PROMPT_TOKENS = 256  # what the pipeline pads prompts to


def _with_image(prompt_tokens: int, every: int) -> int:
    """Tokens of the text from an image.

    The prompt is without the 4 tokens of the template's end, and behind some of the image's 576:
    every second (latent concatenation) or fourth (token replacement).
    """
    return prompt_tokens - 4 + -(-576 // every)


_CONCAT_EVERY, _REPLACE_EVERY = 2, 4
_CONCAT_TOKENS = _with_image(_PROMPT_TOKENS, _CONCAT_EVERY)
_REPLACE_TOKENS = _with_image(_PROMPT_TOKENS, _REPLACE_EVERY)


class HunyuanVideo(Hunyuan):
    """A HunyuanVideo, told apart by how it takes an image.

    Parameters
    ----------
    image
        The configuration's `image_condition_type`: None for text to video.
    text_tokens
        Length of the text in the pipeline's calls.
    pipeline
        Class name of the pipeline.
    """

    refused: Mapping[str, str]
    transformer_class = "HunyuanVideoTransformer3DModel"
    distinctive = (
        "image_condition_type",
        "guidance_embeds",
        "in_channels",
        "out_channels",
        "patch_size_t",
        "patch_size",
    )
    remedy = (
        "choose the model it belongs to; only latent concatenation is supported without embedded "
        "guidance"
    )
    defaults = GenerationDefaults(VideoSize(129, 720, 1280), 50, 6.0, torch.bfloat16, 24)

    def __init__(
        self,
        name: str,
        *,
        image: Literal["token_replace", "latent_concat"] | None = None,
        text_tokens: int,
        pipeline: str,
    ) -> None:
        self.name = name
        self.image = image
        self.guidance = image != "latent_concat"
        self.pipeline_class = pipeline
        self.sequences = {"text_tokens": text_tokens}
        self.configs = {
            size: {
                **config,
                "in_channels": self._channels(config["out_channels"]),
                "image_condition_type": image,
                "guidance_embeds": self.guidance,
            }
            for size, config in _CONFIGS.items()
        }
        if image != "token_replace":  # whose blocks count the tokens of the first frame
            cuts = {("transformer_blocks.0", "hidden_states"): 1}
            self.token_cuts = TokenCuts(cuts, outputs={"rope": 0})
        self.refused = {"attention_kwargs": "leave it out"}
        self.inputs = (
            GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
            GraphInput("timestep", ("batch",), torch.float32, constant(500.0)),
            GraphInput("encoder_hidden_states", ("batch", "text_tokens", "text_embed_dim")),
            GraphInput(
                "encoder_attention_mask", ("batch", "text_tokens"), torch.int32, prompt_masks
            ),
            GraphInput("pooled_projections", ("batch", "pooled_projection_dim")),
        )
        if self.guidance:
            scale = constant(self.defaults.guidance_scale * 1000)
            self.inputs += (GraphInput("guidance", ("batch",), torch.float32, scale),)
        else:
            self.refused["guidance"] = "leave it out: the checkpoint has no embedded guidance"

    def _channels(self, latents: int) -> int:
        """Channels in; latent concatenation adds the image's latents and a mask."""
        return 2 * latents + 1 if self.image == "latent_concat" else latents

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return (
            config["image_condition_type"] == self.image
            and config["guidance_embeds"] == self.guidance
            and config["in_channels"] == self._channels(config["out_channels"])
            and (config["patch_size_t"], config["patch_size"])
            == (self.patch_frames, self.patch_pixels)
        )

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Constructor arguments; `layers` is the depth of each kind of block, or all there are."""
        config = dict(self.configs[size])
        if layers is not None:
            kinds = ("num_layers", "num_single_layers")
            most = max(config[kind] for kind in kinds)
            if not 1 <= layers <= most:
                raise InvalidInputError(
                    f"layers={layers} must be between 1 and {most}, the larger number of blocks of "
                    f"one kind in {self.name} ({size})"
                )
            config.update({kind: min(layers, config[kind]) for kind in kinds})
        return config

    def check_call(
        self, arguments: Mapping[str, Any], *, text_tokens: TextBounds = (None, None)
    ) -> None:
        """Also of negative prompts, to which diffusers gives every second token of the image.

        Whatever it gives to the prompt: with token replacement the two have different lengths.
        """
        embeds = arguments.get("negative_prompt_embeds") is not None
        scale = arguments.get("true_cfg_scale") or 1.0
        if self.image is None or embeds or scale <= 1.0 or arguments.get("negative_prompt") is None:
            return
        prompt = arguments.get("max_sequence_length") or _PROMPT_TOKENS
        negative = _with_image(prompt, _CONCAT_EVERY)
        low, high = text_tokens
        if negative < (low or 1) or negative > (high or negative):
            takes = f"{low}" if low == high else f"{low or 1} to {high}"
            raise UnsupportedError(
                f"{self.name}: true_cfg_scale={scale:g} with negative_prompt: diffusers makes "
                f"{negative} tokens of text of it, and this graph takes {takes}; leave both out, "
                "export with --dynamic and build for both lengths, or use backend='torch'"
            )

    def attention_count(self, config: Mapping[str, Any]) -> int:
        return config["num_layers"] + config["num_single_layers"]


_FROM_IMAGE = "HunyuanVideoImageToVideoPipeline"

HUNYUANVIDEO = HunyuanVideo(
    "hunyuanvideo", text_tokens=_PROMPT_TOKENS, pipeline="HunyuanVideoPipeline"
)
HUNYUANVIDEO_I2V = HunyuanVideo(
    "hunyuanvideo-i2v", image="token_replace", text_tokens=_REPLACE_TOKENS, pipeline=_FROM_IMAGE
)
HUNYUANVIDEO_I2V_33CH = HunyuanVideo(
    "hunyuanvideo-i2v-33ch", image="latent_concat", text_tokens=_CONCAT_TOKENS, pipeline=_FROM_IMAGE
)
