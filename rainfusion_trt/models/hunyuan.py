"""The common part of HunyuanVideo and HunyuanVideo-1.5."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import nn

from rainfusion_trt.models.base import AttentionLayout, VideoModel


class Hunyuan(VideoModel):
    """Joint attention with the text last; masks over padded prompts become a length.

    Attributes
    ----------
    masks : tuple of str
        The inputs that are masks over text.
    """

    text = "last"
    guidance_batch = False
    masks: tuple[str, ...] = ("encoder_attention_mask",)

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """The base class's layout, with the number of valid tokens in place of the masks."""
        grid = self._grid(transformer, forward_kwargs)
        masks = [forward_kwargs[name] for name in self.masks]
        lengths = [mask.sum(dim=1, dtype=torch.int32) for mask in masks]
        return AttentionLayout(
            grid=grid,
            text=self.text,
            kv_len=reduce(torch.add, lengths) + grid.numel(),
            text_tokens=sum(mask.shape[1] for mask in masks),
        )
