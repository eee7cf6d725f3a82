"""MiniMax-H3, video and sound from text, images, clips and sounds (diffusers MiniMaxH3Blocks).

One stack of blocks attends over one packed sequence, and every task of diffusers packs it so::

    [text | keyframes, or reference images, clips and sounds | sound to make | video to make]

The generated video is one run of T*H*W rows at the end, in raster order. That is the operator's
``text="first"`` with all that is no generated video as text: every pair with such a row is kept,
so that keyframes, references and sound are sinks and only queries of the generated video are
sparse. Nothing is moved or masked for it.

The transformer is told no grid; it is read off `position_ids`, which give time, row and column of
every row of the sequence. That needs their values, once a forward: 24 bytes a row to the CPU, and
a wait for the GPU. A sequence that does not end in one such run is refused. A graph has the grid as
an input, which is made of a call in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.examples import constant
from rainfusion_trt.models.layout import token_grid

_IN_CHANNELS = 24
_TEXT_TOKENS = 256  # usual; prompts are not padded
_NOISE_LEVELS = 4  # of video and sound to make, and of what is given of either
_AUDIO_CHANNELS = 2  # of the soundtrack, one after the other in the sequence
_FULL = {
    "num_attention_heads": 56,
    "attention_head_dim": 128,
    "hidden_size": 5376,
    "num_layers": 50,
    "in_channels": _IN_CHANNELS,
    "audio_in_channels": 32,
    "text_dim": 5120,
}
_TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "hidden_size": 96,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "ffn_dim": 64,
    "in_channels": _IN_CHANNELS,
    "audio_in_channels": 8,
    "text_dim": 32,
    "freq_dim": 32,
    "time_embed_hidden_dim": 48,
    "time_embed_dim": 32,
}


class MiniMaxH3(VideoModel):
    """MiniMax-H3, which diffusers has modular blocks for and no pipeline."""

    name = "minimax-h3"
    text = "first"
    transformer_class = "MiniMaxH3Transformer3DModel"
    pipeline_class = "MiniMaxH3ModularPipeline"
    guidance_batch = False
    no_pipeline = (
        "diffusers has modular blocks for it and no pipeline: use "
        "rainfusion_trt.enable(pipe.transformer) in those blocks, or in its place "
        "rainfusion_trt.load_graph of an engine or ONNX file"
    )
    outputs = ("sample", "audio_sample")
    noisy_inputs = ("hidden_states", "audio_hidden_states")
    refused = {"attention_kwargs": "leave it out"}
    vae_pixels = 16
    vae_frames = 17
    # Of the usual clip; `extents` counts those of others.
    sequences = {"text_tokens": _TEXT_TOKENS, "audio_tokens": 414, "packed_tokens": 37966}
    inputs = (
        GraphInput("hidden_states", ("batch", "video_tokens", 4 * _IN_CHANNELS)),
        GraphInput("audio_hidden_states", ("batch", "audio_tokens", "audio_in_channels")),
        GraphInput("encoder_hidden_states", ("batch", "text_tokens", "text_dim")),
        GraphInput("timestep", (_NOISE_LEVELS,), torch.float32, None),
        GraphInput("timestep_indices", ("packed_tokens",), torch.int64, None),
        GraphInput("token_tags", ("packed_tokens",), torch.int64, None),
        # diffusers packs float64, and its rotary embedding begins by rounding to this.
        GraphInput("position_ids", ("packed_tokens", 3), torch.float32, None),
        GraphInput("video_indices", ("video_tokens",), torch.int64, None),
        GraphInput("audio_indices", ("audio_tokens",), torch.int64, None),
        GraphInput("text_indices", ("text_tokens",), torch.int64, None),
        GraphInput("grid", ("grid_frames", "grid_height", "grid_width"), None, constant(0)),
    )
    distinctive = ("in_channels", "audio_in_channels", "patch_size")
    remedy = "only MiniMax-H3 is supported"
    configs = {"full": _FULL, "tiny": _TINY}
    defaults = GenerationDefaults(VideoSize(124, 768, 1344), 50, 1.0, torch.bfloat16, 24)
    tiny_size = VideoSize(22, 128, 192)

    def _has_config(self, config: Mapping[str, Any]) -> bool:
        return config["in_channels"] == _IN_CHANNELS and tuple(config["patch_size"]) == (1, 2, 2)

    # -- sizes and examples ---------------------------------------------------------------------

    def _latent_frames(self, frames: int) -> int:
        if frames < 5 or frames % self.vae_frames != 5:
            raise self._bad_size("frames", frames, "17k + 5")
        return frames // self.vae_frames * 5 + 2

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """With the rows of the soundtrack and of the whole sequence."""
        extents = super().extents(config, size, batch)
        audio = self._audio_rows(extents["grid_frames"])
        packed = extents["text_tokens"] + audio + extents["video_tokens"]
        return {**extents, "audio_tokens": audio, "packed_tokens": packed}

    @staticmethod
    def _audio_rows(latent_frames: int) -> int:
        """40 latents a second of 24 frames, for each channel."""
        frames = (latent_frames - 2) // 5 * 17 + 5
        return round(frames * 40 / 24) * _AUDIO_CHANNELS

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """The sequence of a prompt alone, packed by diffusers; video and sound of other noise."""
        from diffusers.modular_pipelines.minimax_h3.before_denoise import (
            MiniMaxH3PrepareLayoutStep,
            MiniMaxH3SetTimestepsStep,
        )

        frames, height, width = grid
        places, tags, video, audio, words, _, _ = MiniMaxH3PrepareLayoutStep.build_packed_sequence(
            torch.ones(_TEXT_TOKENS, dtype=torch.long),
            frames,
            height * self.patch_pixels,
            width * self.patch_pixels,
            self._audio_rows(frames) // _AUDIO_CHANNELS,
            (1, self.patch_pixels, self.patch_pixels),
            _AUDIO_CHANNELS,
            audio_tag=2,
            video_tag=0,
        )
        steps, rows = MiniMaxH3SetTimestepsStep.build_row_timesteps(
            video, audio, 0, 0, _TEXT_TOKENS, 0.3, 0.6, 0.999, 1.0
        )
        inputs = {
            "timestep": _all_levels(steps),
            "timestep_indices": rows,
            "token_tags": tags,
            "position_ids": places.float(),
            "video_indices": video,
            "audio_indices": audio,
            "text_indices": words,
        }
        return {name: tensor.to(device) for name, tensor in inputs.items()}

    # -- the graph ------------------------------------------------------------------------------

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """With the grid's numbers where the transformer takes no notice of them."""
        kwargs = super().forward_kwargs(graph_inputs)
        kwargs["attention_kwargs"] = {"grid": tuple(kwargs.pop("grid").shape)}
        return kwargs

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inverse: the grid of a call's positions, and as many noise levels as there may be.

        A call has those that are in its sequence, some of which may be one.
        """
        call = dict(forward_kwargs)
        for name in ("hidden_states", "timestep", "position_ids", "video_indices"):
            if call.get(name) is None:
                raise InvalidInputError(
                    f"{self.name}: {name} is missing; pass what MiniMaxH3Blocks pass"
                )
        if set(call.get("attention_kwargs") or ()) <= {"grid"}:  # ours, which the call gives anew
            call.pop("attention_kwargs", None)
        levels = call["timestep"].numel()
        if levels > _NOISE_LEVELS:
            raise InvalidInputError(
                f"{self.name}: timestep has {levels} noise levels, and the graph takes up to "
                f"{_NOISE_LEVELS}: of video and sound to make, and of what is given of either"
            )
        call["timestep"] = _all_levels(call["timestep"])
        call["grid"] = token_grid(self._clip(call)[0], call["hidden_states"])
        return super().graph_inputs(call)

    def result(self, outputs: tuple[Tensor, ...]) -> Any:
        from diffusers.models.transformers.transformer_minimax_h3 import MiniMaxH3TransformerOutput

        return MiniMaxH3TransformerOutput(*outputs)

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The generated video's grid, and how many other rows come before it.

        Raises
        ------
        UnsupportedError
            The sequence does not end in one clip, or torch.compile traces the whole transformer.
        """
        like = forward_kwargs["hidden_states"]
        if torch.compiler.is_exporting():  # of inputs that `graph_inputs` has looked at
            grid = token_grid(forward_kwargs["attention_kwargs"]["grid"], like)
            rows = forward_kwargs["position_ids"].shape[0]
            return AttentionLayout(grid, self.text, text_tokens=rows - grid.numel(), tokens=rows)
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                f"{self.name}: the grid is read off the values of position_ids, which "
                "torch.compile cannot do for the whole transformer; compile its blocks: "
                "transformer.compile_repeated_blocks(fullgraph=True)"
            )
        sizes, first = self._clip(forward_kwargs)
        return AttentionLayout(token_grid(sizes, like), text=self.text, text_tokens=first)

    def _clip(self, forward_kwargs: Mapping[str, Any]) -> tuple[tuple[int, int, int], int]:
        """The grid of the generated video, and the rows before it, by values of a call."""
        places = forward_kwargs["position_ids"].detach().cpu()
        first = _last_run(forward_kwargs["video_indices"].cpu(), len(places))
        grid = _raster(places[first:])
        if grid is None:
            raise UnsupportedError(
                f"{self.name}: {len(places) - first} of the {len(places)} rows of the packed "
                "sequence are video rows at its end, and their position_ids are not those of one "
                "clip, frame by frame and row by row; RainFusion takes one generated clip as the "
                "last rows, with all else before it, as diffusers' MiniMaxH3Blocks pack it"
            )
        return grid, first


def _all_levels(steps: Tensor) -> Tensor:
    """Noise levels [n], the last one repeated up to the number that a graph takes."""
    return torch.cat([steps, steps[-1:].expand(_NOISE_LEVELS - len(steps))])


def _last_run(video: Tensor, rows: int) -> int:
    """Where the last run of video rows begins in a sequence; its end if it ends in others."""
    other = torch.ones(rows, dtype=torch.bool)
    other[video] = False
    return rows - _equal_at_end(other.int()) if not other[-1] else rows


def _equal_at_end(values: Tensor) -> int:
    """How many of the last values [n] or [n, m] are as the last one."""
    different = (values.view(len(values), -1) != values[-1].view(1, -1)).any(dim=1).nonzero()
    return len(values) - (int(different[-1]) + 1 if len(different) else 0)


def _raster(places: Tensor) -> tuple[int, int, int] | None:
    """(T, H, W) of rows [n, 3] of time, row and column in raster order; None if they are not."""
    if not len(places):
        return None
    frame, width = _equal_at_end(places[:, :1]), _equal_at_end(places[:, :2])
    frames, height = len(places) // frame, frame // width
    if frames * height * width != len(places):
        return None
    grid = places.view(frames, height, width, 3)
    axes = (grid[:, 0, 0, 0], grid[0, :, 0, 1], grid[0, 0, :, 2])
    raster = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    rising = all((axis.diff() > 0).all() for axis in axes)
    return (frames, height, width) if rising and torch.equal(raster, grid) else None


MINIMAX_H3 = MiniMaxH3()
