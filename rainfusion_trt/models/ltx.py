"""LTX-Video 0.9, text and image to video (arXiv 2501.00103; diffusers LTXPipeline and others).

Tokens are packed, self-attention is over the video alone, the text comes in by cross-attention. The
graph takes the coordinates of the tokens, of which its rotary tables are made, and a timestep for
every token: so one graph serves text to video, image to video and conditions on first frames.
Conditions on later frames put tokens of their own before the grid, which attend to all and to which
all attend, as to text in other models. A graph whose sizes vary takes any number of them, 0 too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, NotSparseError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    ConfigSize,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import constant, prompt_masks
from rainfusion_trt.models.inputs import Profiles
from rainfusion_trt.models.layout import token_grid
from rainfusion_trt.models.ltx_conditions import check_beside, frames_before
from rainfusion_trt.models.ltx_tokens import Grid, packed_tokens
from rainfusion_trt.operator.settings import TextPlace

TEXT_TOKENS = 128  # what LTXPipeline pads prompts to; LTXConditionPipeline by default to 256
NUMBERS = ("num_frames", "height", "width")


def steps_from_zero(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """[B, tokens], timesteps of an image to video: 0 for the first tokens, one for the others."""
    values = torch.full(shape, 500.5, dtype=dtype, device=generator.device)
    values[:, : max(1, shape[1] // 4)] = 0
    return values


class PackedLtx(VideoModel):
    """What LTX-Video and LTX-2 have in common: packed tokens, and a grid that calls give.

    Attributes
    ----------
    beside : {"first", "last"}
        Where pipelines put tokens of conditions that are no part of the grid: before it or behind.
    condition_frames : callable
        From the arguments of a pipeline's call to how many latent frames of such tokens there are.
    """

    text = "none"
    beside: TextPlace
    condition_frames: Callable[[Mapping[str, Any]], int]
    vae_frames, vae_pixels, patch_pixels = 8, 32, 1
    grid_input = GraphInput("grid", ("grid_frames", "grid_height", "grid_width"), None, constant(0))

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The grid of the call; conditioning tokens beside it stand where text would."""
        if torch.compiler.is_exporting():  # of inputs that `graph_inputs` has looked at
            hidden_states = forward_kwargs["hidden_states"]
            grid = token_grid([forward_kwargs[name] for name in NUMBERS], hidden_states)
            count = hidden_states.shape[1]
            # A fixed number is that of the grid; one that varies may be larger.
            place: TextPlace = "none" if isinstance(count, int) else self.beside
            return AttentionLayout(grid, place, text_tokens=count - grid.numel(), tokens=count)
        try:
            tokens = packed_tokens(forward_kwargs)
        except NotSparseError as error:
            raise NotSparseError(f"{self.name}: {error}") from None
        grid = token_grid(tokens.grid, forward_kwargs["hidden_states"])
        if tokens.before:
            return AttentionLayout(grid, "first", text_tokens=tokens.before)
        if tokens.after:
            return AttentionLayout(grid, "last", text_tokens=tokens.after)
        return AttentionLayout(grid, "none")

    def grid_shape(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> tuple[int, int, int]:
        """Of no tokens where there is no grid, so that nothing can be sparse."""
        try:
            return super().grid_shape(transformer, forward_kwargs)
        except NotSparseError:
            return 0, 0, 0

    # -- the graph ------------------------------------------------------------------------------

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """With the tokens of the whole sequence, in which nothing stands beside the grid."""
        extents = super().extents(config, size, batch)
        return {**extents, "packed_tokens": extents["video_tokens"]}

    def with_conditions(self, extents: Mapping[str, int], frames: int) -> dict[str, int]:
        """With as many frames more in the sequence."""
        tokens = frames * extents["grid_height"] * extents["grid_width"]
        return {**extents, "packed_tokens": extents["packed_tokens"] + tokens}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With the grid's numbers, of which the transformer takes no notice beside coordinates."""
        kwargs = super().forward_kwargs(graph_inputs)
        kwargs.update(zip(NUMBERS, kwargs.pop("grid").shape, strict=True))
        return kwargs

    def grid_of_call(self, forward_kwargs: Mapping[str, Any]) -> Grid:
        """The grid of a call whose conditioning tokens, if any, stand where a graph takes them.

        Raises
        ------
        UnsupportedError
            They stand on the other side of it.
        """
        try:
            tokens = packed_tokens(forward_kwargs)
        except NotSparseError as error:
            raise NotSparseError(f"{self.name}: {error}") from None
        first = self.beside == "first"
        count = tokens.after if first else tokens.before
        if count:
            raise UnsupportedError(
                f"{self.name}: the call has {count} conditioning tokens "
                f"{'behind' if first else 'before'} the {' x '.join(map(str, tokens.grid))} of the "
                f"video, and exported graphs take them {'before' if first else 'behind'} it; use "
                "backend='torch'"
            )
        return tokens.grid

    def check_room(self, inputs: Mapping[str, Tensor], profiles: Profiles) -> None:
        """Also of conditioning tokens, of which a graph of one size takes none."""
        frames, height, width = inputs["grid"].shape
        beside = inputs["hidden_states"].shape[1] - frames * height * width
        check_beside(self.name, (frames, height, width), beside, profiles)

    def check_conditions(self, arguments: Mapping[str, Any], profiles: Profiles) -> None:
        """The same of the conditions on later frames that a call is given."""
        frames = self.condition_frames(arguments)
        size: list[Any] = [arguments.get(name) for name in NUMBERS]
        if frames and arguments.get("latents") is None and None not in size:
            grid = self._latent_size(VideoSize(*size))
            check_beside(self.name, grid, frames * grid[1] * grid[2], profiles)

    def per_token(self, name: str, value: Any, tokens: Tensor) -> Tensor:
        """A timestep for every one of `tokens` [B, S, C], of one for all, a clip or a token."""
        batch, count = tokens.shape[:2]
        steps = torch.as_tensor(value, device=tokens.device)
        if steps.numel() == 1:
            steps = steps.reshape(1, 1)
        elif steps.numel() in (batch, batch * count) and steps.shape[0] == batch:
            steps = steps.reshape(batch, -1)
        else:
            raise InvalidInputError(
                f"{self.name}: {name} has shape {list(steps.shape)}; give one value, [{batch}] or "
                f"[{batch}, {count}]"
            )
        return steps.expand(batch, count)

    def mask(self, name: str, value: Tensor | None, text: Tensor) -> Tensor:
        """A mask over the text [B, L, C], also where all of it counts."""
        if value is None:
            return text.new_ones(text.shape[:2])
        if value.shape != text.shape[:2]:
            raise InvalidInputError(
                f"{self.name}: {name} has shape {list(value.shape)}, the graph takes "
                f"{list(text.shape[:2])}, 1 for the tokens that count"
            )
        return value

    def of_one_clip(self, name: str, coordinates: Tensor) -> Tensor:
        """Coordinates without their batch axis: those of all clips of a call are the same."""
        first = coordinates[0]
        if len(coordinates) > 1 and not bool((coordinates[1:] == first).all()):
            raise UnsupportedError(
                f"{self.name}: {name} differs between the clips of the batch, and the exported "
                "graph takes one for all; make the clips one by one"
            )
        return first


class LtxVideo(PackedLtx):
    """A size of LTX-Video, told apart by its head size."""

    transformer_class = "LTXVideoTransformer3DModel"
    pipeline_class = "LTXPipeline"
    other_pipelines = (
        "LTXImageToVideoPipeline",
        "LTXConditionPipeline",
        "LTXI2VLongMultiPromptPipeline",
    )
    beside = "first"
    condition_frames = staticmethod(frames_before)
    sequences = {"text_tokens": TEXT_TOKENS, "packed_tokens": 7392}  # of the usual clip
    refused = {"attention_kwargs": "leave it out"}
    inputs = (
        GraphInput("hidden_states", ("batch", "packed_tokens", "in_channels")),
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "caption_channels")),
        GraphInput("timestep", ("batch", "packed_tokens"), torch.float32, steps_from_zero),
        GraphInput("encoder_attention_mask", ("batch", "text_tokens"), None, prompt_masks),
        GraphInput("video_coords", (3, "packed_tokens"), torch.float32, None),
        PackedLtx.grid_input,
    )
    tiny_size = VideoSize(17, 128, 192)  # 3 x 4 x 6 tokens
    distinctive = ("num_attention_heads", "attention_head_dim", "patch_size", "patch_size_t")
    remedy = "choose the model it belongs to, by its head size"

    def __init__(
        self, name: str, *, aliases: tuple[str, ...], full: Mapping[str, Any], head_size: int
    ) -> None:
        self.name = name
        self.aliases = aliases
        self.defaults = GenerationDefaults(VideoSize(161, 512, 704), 50, 3.0, torch.bfloat16, 25)
        shapes = {"in_channels": 128, "attention_head_dim": head_size, "caption_channels": 4096}
        width = 2 * head_size
        tiny = {
            **shapes,
            "in_channels": 8,
            "out_channels": 8,
            "num_attention_heads": 2,
            "cross_attention_dim": width,
            "num_layers": 2,
            "caption_channels": 32,
        }
        self.configs: dict[ConfigSize, dict[str, Any]] = {"full": {**shapes, **full}, "tiny": tiny}

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return config["attention_head_dim"] == self.configs["full"]["attention_head_dim"] and (
            config["patch_size_t"],
            config["patch_size"],
        ) == (1, 1)

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """The coordinates as LTXPipeline has them, at its frame rate."""
        scale = (self.vae_frames / self.defaults.fps, self.vae_pixels, self.vae_pixels)
        return {"video_coords": _coordinates(grid, scale, device)}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Coordinates with a batch axis of 1: the rotary tables are those of all clips."""
        kwargs = super().forward_kwargs(graph_inputs)
        kwargs["video_coords"] = kwargs["video_coords"][None]
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inverse: coordinates, also of numbers, and a timestep for every token."""
        call = dict(forward_kwargs)
        tokens, text = call["hidden_states"], call["encoder_hidden_states"]
        grid = self.grid_of_call(call)
        call["grid"] = token_grid(grid, tokens)
        call["video_coords"] = self._coordinates_of(call, grid)
        if call.get("timestep") is not None:
            call["timestep"] = self.per_token("timestep", call["timestep"], tokens)
        mask = call.get("encoder_attention_mask")
        call["encoder_attention_mask"] = self.mask("encoder_attention_mask", mask, text)
        return super().graph_inputs(call)

    def _coordinates_of(self, call: Mapping[str, Any], grid: Grid) -> Tensor:
        given = call.get("video_coords")
        if given is not None:
            return self.of_one_clip("video_coords", given)
        scale = call.get("rope_interpolation_scale")
        if scale is None:
            raise InvalidInputError(
                f"{self.name}: neither video_coords nor rope_interpolation_scale is given; pass "
                "what LTXPipeline passes"
            )
        return _coordinates(grid, scale, call["hidden_states"].device)


def _coordinates(grid: Grid, scale: Any, device: str | torch.device) -> Tensor:
    """float32 [3, T*H*W], of which the transformer makes what it makes of grid and scale."""
    axes = [torch.arange(extent, dtype=torch.float32, device=device) for extent in grid]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    return torch.stack([places[i] * scale[i] for i in range(3)]).flatten(1)


LTX_VIDEO_2B = LtxVideo(
    "ltx-video-2b",
    aliases=("ltx-video", "ltx"),
    full={"num_attention_heads": 32, "cross_attention_dim": 2048, "num_layers": 28},
    head_size=64,
)
LTX_VIDEO_13B = LtxVideo(
    "ltx-video-13b",
    aliases=(),
    full={"num_attention_heads": 32, "cross_attention_dim": 4096, "num_layers": 48},
    head_size=128,
)
