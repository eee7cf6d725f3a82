"""The mapping of one forward call's self-attention to the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rainfusion_trt.operator.settings import TextPlace


@dataclass(frozen=True)
class AttentionLayout:
    """The operator's arguments for the self-attention of one forward call.

    Attributes
    ----------
    grid : Tensor
        Any tensor of shape [T, H, W], the token grid after patching; only its shape is read. A
        view of the latents, or `token_grid` where a call gives the grid as numbers.
    text : {"none", "first", "last"}
        Place of the text tokens in the attention sequence.
    kv_len : Tensor, optional
        int32 [B], valid tokens per batch element, or None when every token is valid. It stands for
        the attention mask of the call, which the operator does not get.
    text_tokens : int
        L, so that attention over T*H*W + L tokens is the operator's and other attention is not.
    tokens : int, optional
        S, which T*H*W + L is, where a model reads it off its inputs. An export then need not relate
        the length of packed tokens to three other inputs, which takes torch minutes.
    """

    grid: Tensor
    text: TextPlace
    kv_len: Tensor | None = None
    text_tokens: int = 0
    tokens: int | None = None


def token_grid(sizes: Sequence[int], like: Tensor) -> Tensor:
    """A grid for `AttentionLayout` from three numbers; it holds a single element.

    A transformer that takes packed tokens [B, S, C] is told the grid as numbers. So that its graph
    serves more than one size, they have to come from an input: one with the axes `grid_frames`,
    `grid_height` and `grid_width`, whose shape `VideoModel.forward_kwargs` turns into the numbers
    and `VideoModel.graph_inputs` makes of them.

    Parameters
    ----------
    sizes : sequence of int
        T, H and W.
    like : Tensor
        Gives dtype and device.
    """
    return torch.zeros(1, dtype=like.dtype, device=like.device).expand(*sizes)
