"""Wan 2.1 and Wan 2.2: text to video and image to video (arXiv 2503.20314).

All are diffusers' WanTransformer3DModel. Self-attention is over the video alone; the text, and the
image where it has embeddings, come in by cross-attention. Rotary tables are buffers of the
transformer, cut to the grid inside its forward, so one graph serves every size.

Image to video adds no tokens: the latents of the image, 0 behind it, and a mask are 20 channels
beside the noisy latents. So the user's image is latent frame 0, which `sink_frames=1` keeps exact.
A last frame is conditioned in the same channels and stays an ordinary frame at the end. Wan 2.2
TI2V-5B has no such channels: its pipeline writes the image over latent frame 0 and gives the tokens
of that frame the timestep 0.

Wan 2.2 A14B has two transformers, one for the noisy and one for the late steps. Each is exported by
itself, and `Pipeline` drives both. `enable` takes them one by one; those of text to video it cannot
tell from 2.1-14B, which makes no difference to it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import GenerationDefaults, GraphInput, VideoModel, VideoSize
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.token_cuts import TokenCuts

TEXT_TOKENS = 512  # UMT5's, padded with zeros and not masked
IMAGE_TOKENS = 257  # CLIP's, of one image

_FULL = {"image_dim": None, "pos_embed_seq_len": None, "text_dim": 4096}
_TINY = {
    **_FULL,
    "attention_head_dim": 128,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 96,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


class Wan(VideoModel):
    """A Wan, told apart by its width, its channels and its image embeddings.

    Parameters
    ----------
    vae_pixels
        Pixels a latent row or column.
    token_timesteps
        Whether the pipeline gives a timestep for every token (its `expand_timesteps`).
    images
        How many images there are embeddings of.
    components
        Transformers of the pipeline.
    pipeline_class, other_pipelines
        Class names in diffusers of its pipelines; by default it is text to video.
    """

    text = "none"
    transformer_class = "WanTransformer3DModel"
    pipeline_class = "WanPipeline"
    guidance_batch = False
    # They tell the members of the family apart.
    distinctive: tuple[str, ...] = (
        "in_channels",
        "out_channels",
        "num_attention_heads",
        "image_dim",
        "pos_embed_seq_len",
    )

    def __init__(
        self,
        name: str,
        *,
        full: Mapping[str, Any],
        tiny: Mapping[str, Any],
        defaults: GenerationDefaults,
        vae_pixels: int = 8,
        token_timesteps: bool = False,
        images: int = 0,
        components: tuple[str, ...] = ("transformer",),
        pipeline_class: str | None = None,
        other_pipelines: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.defaults = defaults
        self.vae_pixels = vae_pixels
        self.token_timesteps = token_timesteps
        self.image_tokens = images * IMAGE_TOKENS
        self.components = components
        self.token_cuts = self._token_cuts()
        self.pipeline_class = pipeline_class or self.pipeline_class
        self.other_pipelines = other_pipelines
        self.configs = {"full": {**_FULL, **full}, "tiny": {**_TINY, **tiny}}
        timestep = ("batch", "video_tokens") if token_timesteps else ("batch",)
        # Diffusers takes the last 512 tokens for the text where there are an image's before them.
        text: str | int = TEXT_TOKENS if images else "text_tokens"
        self.sequences = {} if images else {"text_tokens": TEXT_TOKENS}
        self.inputs = (
            GraphInput("hidden_states", ("batch", "in_channels", "frames", "height", "width")),
            # Schedulers of flow matching have fractions.
            GraphInput("timestep", timestep, torch.float32, constant(500.0)),
            GraphInput("encoder_hidden_states", ("batch", text, "text_dim")),
        )
        if images:
            axes = ("batch", self.image_tokens, "image_dim")
            self.inputs += (GraphInput("encoder_hidden_states_image", axes),)
        else:
            remedy = "leave it out, since this transformer has no image embeddings"
            self.refused = {"encoder_hidden_states_image": remedy}
        if token_timesteps:
            self.tiny_size = VideoSize(9, 128, 192)

    def _token_cuts(self) -> TokenCuts | None:
        """A timestep for every token is cut before it is embedded."""
        arguments = {("blocks.0", "hidden_states"): 1}
        if self.token_timesteps:
            arguments["", "timestep"] = 1
        return TokenCuts(arguments, outputs={"rope": 1})

    def check_media(self, arguments: Mapping[str, Any], *, exported: bool) -> None:
        """Its image embeddings are of so many pictures; PyTorch and graphs alike have no others."""
        super().check_media(arguments, exported=exported)
        if "last_image" not in arguments or arguments.get("image_embeds") is not None:
            return
        self.check_start([name for name, value in arguments.items() if value is not None])

    def check_start(self, media: Collection[str]) -> None:
        """Of as many pictures as it has embeddings, where it has any."""
        count = self.image_tokens // IMAGE_TOKENS
        given = [name for name in ("image", "last_image") if name in media]
        if count and len(given) > count:
            raise InvalidInputError(
                f"{self.name} starts from one picture: leave last_image out, or take "
                "wan2.1-flf2v-14b or wan2.2-i2v-a14b, which have a last one"
            )
        if given and len(given) < count:
            raise InvalidInputError(
                f"{self.name} goes from a first picture to a last one: give image and last_image, "
                "or take wan2.1-i2v-14b"
            )

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return any(
            all(config[key] == known[key] for key in self.distinctive)
            for known in self.configs.values()
        )

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Embeddings of two images are two rows of the batch, as the pipeline has them."""
        kwargs = super().forward_kwargs(graph_inputs)
        if self.image_tokens > IMAGE_TOKENS:
            image = kwargs["encoder_hidden_states_image"]
            kwargs["encoder_hidden_states_image"] = image.reshape(-1, IMAGE_TOKENS, image.shape[-1])
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Also check the timestep, for each token or for all of them, and the images."""
        timestep = forward_kwargs.get("timestep")
        shape = [] if timestep is None else list(torch.as_tensor(timestep).shape)
        if timestep is not None and self.token_timesteps != (len(shape) == 2):
            wanted = "[B, tokens]" if self.token_timesteps else "[B]"
            raise InvalidInputError(
                f"{self.name}: timestep has shape {shape}, the graph takes "
                f"{wanted}; set expand_timesteps={self.token_timesteps} in the pipeline's "
                "configuration"
            )
        image = forward_kwargs.get("encoder_hidden_states_image")
        if self.image_tokens and image is not None:
            batch = forward_kwargs["hidden_states"].shape[0]
            together = self._of_a_clip(image, batch)
            forward_kwargs = {**forward_kwargs, "encoder_hidden_states_image": together}
        return super().graph_inputs(forward_kwargs)

    def _of_a_clip(self, image: Tensor, batch: int) -> Tensor:
        """Image embeddings with those of one clip in one row."""
        count = self.image_tokens // IMAGE_TOKENS
        if image.dim() != 3 or tuple(image.shape[:2]) != (batch * count, IMAGE_TOKENS):
            what = "image alone" if count == 1 else "image and last_image"
            raise InvalidInputError(
                f"{self.name}: encoder_hidden_states_image has shape {list(image.shape)} for a "
                f"batch of {batch}, the graph takes [{batch * count}, {IMAGE_TOKENS}, image_dim]; "
                f"give the pipeline {what}"
            )
        return image.reshape(batch, self.image_tokens, image.shape[-1])


_CHANNELS_16 = {"in_channels": 16, "out_channels": 16}
_CHANNELS_36 = {"in_channels": 36, "out_channels": 16}  # noise, mask and the image's latents
_CHANNELS_48 = {"in_channels": 48, "out_channels": 48}
FULL_1_3B = {**_CHANNELS_16, "num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
FULL_14B = {**_CHANNELS_16, "num_attention_heads": 40, "ffn_dim": 13824, "num_layers": 40}
FULL_IMAGE = {**FULL_14B, **_CHANNELS_36, "image_dim": 1280, "added_kv_proj_dim": 5120}
TINY_IMAGE = {**_CHANNELS_36, "num_attention_heads": 2, "image_dim": 24, "added_kv_proj_dim": 256}
_TWO_IMAGES = {"pos_embed_seq_len": 2 * IMAGE_TOKENS}

SIZE_480P = VideoSize(81, 480, 832)
SIZE_720P = VideoSize(81, 720, 1280)
_VIDEO = ("WanVideoToVideoPipeline",)
_IMAGE = "WanImageToVideoPipeline"

WAN_2_1_1_3B = Wan(
    "wan2.1-1.3b",
    full=FULL_1_3B,
    tiny={**_CHANNELS_16, "num_attention_heads": 2},
    defaults=GenerationDefaults(SIZE_480P, 50, 5.0, torch.bfloat16, 16),
    other_pipelines=_VIDEO,
)
WAN_2_1_14B = Wan(
    "wan2.1-14b",
    full=FULL_14B,
    tiny={**_CHANNELS_16, "num_attention_heads": 3},
    defaults=GenerationDefaults(SIZE_720P, 50, 5.0, torch.bfloat16, 16),
    other_pipelines=_VIDEO,
)
WAN_2_1_I2V_14B = Wan(
    "wan2.1-i2v-14b",
    full=FULL_IMAGE,
    tiny=TINY_IMAGE,
    defaults=GenerationDefaults(SIZE_720P, 50, 5.0, torch.bfloat16, 16),
    images=1,
    pipeline_class=_IMAGE,
)
WAN_2_1_FLF2V_14B = Wan(
    "wan2.1-flf2v-14b",
    full={**FULL_IMAGE, **_TWO_IMAGES},
    tiny={**TINY_IMAGE, **_TWO_IMAGES},
    defaults=GenerationDefaults(SIZE_720P, 50, 5.0, torch.bfloat16, 16),
    images=2,
    pipeline_class=_IMAGE,
)
WAN_2_2_A14B = Wan(
    "wan2.2-a14b",
    full=WAN_2_1_14B.configs["full"],
    tiny=WAN_2_1_14B.configs["tiny"],
    defaults=GenerationDefaults(SIZE_720P, 40, 4.0, torch.bfloat16, 16),
    components=("transformer", "transformer_2"),
)
WAN_2_2_I2V_A14B = Wan(
    "wan2.2-i2v-a14b",
    full={**FULL_14B, **_CHANNELS_36},
    tiny={**_CHANNELS_36, "num_attention_heads": 2},
    defaults=GenerationDefaults(SIZE_720P, 40, 3.5, torch.bfloat16, 16),
    components=("transformer", "transformer_2"),
    pipeline_class=_IMAGE,
)
WAN_2_2_TI2V_5B = Wan(
    "wan2.2-ti2v-5b",
    full={**_CHANNELS_48, "num_attention_heads": 24, "ffn_dim": 14336, "num_layers": 30},
    tiny={**_CHANNELS_48, "num_attention_heads": 2},
    defaults=GenerationDefaults(VideoSize(121, 704, 1280), 50, 5.0, torch.bfloat16, 24),
    vae_pixels=16,
    token_timesteps=True,
    other_pipelines=(_IMAGE,),
)
