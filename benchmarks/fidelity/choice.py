"""Choices that a rule makes in an attention call: a mask for every head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


class Choice:
    """Masks of the heads of one call.

    Parameters
    ----------
    code : Tensor
        int [B, N], key of `masks` for each head.
    masks : mapping of int to Tensor
        bool [S, S].
    """

    def __init__(self, code: Tensor, masks: Mapping[int, Tensor]) -> None:
        self.code = code
        self.masks = masks

    def density(self, shares: Mapping[int, float]) -> Tensor:
        """float32 [B, N], given the share of pairs of each mask."""
        table = torch.zeros(max(shares) + 1, device=self.code.device)
        for code, share in shares.items():
            table[code] = share
        return table[self.code.long()]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of q, k, v [B, N, S, D] under the heads' masks."""
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        out = torch.empty_like(flat[0], memory_format=torch.contiguous_format)
        for code, mask in self.masks.items():
            heads = (self.code.flatten() == code).nonzero()[:, 0]
            if len(heads):
                query, key, value = (x[heads][None] for x in flat)
                out[heads] = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)[0]
        return out.view(q.shape)


class Chosen(Protocol):
    """The choice of a rule in a call: a code for each head, int [B, N], and the attention."""

    code: Tensor

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


class Rule(Protocol):
    """Chooses the keys of every head of a call."""

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Chosen, Tensor]:
        """The choice, and the density float32 [B, N] of every head."""
        ...
