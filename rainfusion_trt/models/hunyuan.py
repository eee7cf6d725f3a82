"""What HunyuanVideo and HunyuanVideo-1.5 share as text-to-video models."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import AttentionLayout, TextPlace, VideoModel


class HunyuanTextToVideo(VideoModel):
    """Joint attention with the text last; masks over padded prompts become a length.

    Attributes
    ----------
    inputs : tuple of str
        Arguments of the transformer that the graph takes, in graph order.
    masks : tuple of str
        Those of them that are masks over text.
    """

    text: TextPlace = "last"
    guidance_batch = False
    inputs: tuple[str, ...]
    masks: tuple[str, ...] = ("encoder_attention_mask",)

    def _checked(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """The graph's inputs of a call as the pipeline gives them, masks int32 (it has floats)."""
        for name in self.inputs:
            if forward_kwargs.get(name) is None:
                raise InvalidInputError(
                    f"{self.name}: {name} is missing, so the call does not come from "
                    f"{self.pipeline_class}; pass what that pipeline passes"
                )
        inputs = {name: forward_kwargs[name] for name in self.inputs}
        inputs.update({name: inputs[name].to(torch.int32) for name in self.masks})
        return inputs

    def _padded(
        self, grid: Tensor, forward_kwargs: Mapping[str, Any], image_tokens: int = 0
    ) -> AttentionLayout:
        """Layout of a call; `image_tokens` empty slots stand behind the text."""
        masks = [forward_kwargs[name] for name in self.masks]
        lengths = [mask.sum(dim=1, dtype=torch.int32) for mask in masks]
        return AttentionLayout(
            grid=grid,
            text=self.text,
            kv_len=reduce(torch.add, lengths) + grid.numel(),
            text_tokens=sum(mask.shape[1] for mask in masks) + image_tokens,
        )


def prompt_mask(batch: int, tokens: int, device: str | torch.device) -> Tensor:
    """int32 [B, tokens]: prompts of different length, each shorter than the padding."""
    lengths = torch.arange(batch, device=device) % 4 * (tokens // 8) + tokens // 4
    positions = torch.arange(tokens, device=device)
    return (positions < lengths[:, None]).to(torch.int32)
