"""Synthetic heads whose kind is known, for tests and benchmarks.

Random weights give flat attention, which ARM rightly calls textural. These heads carry the
structure that makes a head temporal or spatial: every token holds a random code of its place or of
its frame, so that queries find the keys that share it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import Kind, TokenLayout

_CODE_GAIN = 4.0  # score of a matching code after scaling is about gain^2 * sqrt(D)


def synthetic_heads(
    layout: TokenLayout,
    kinds: Sequence[Sequence[Kind]],
    head_size: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v whose heads ARM finds to be of the given kinds at moderate sparsity.

    Parameters
    ----------
    layout
        Tokens of the sequence.
    kinds
        [B][N] of ``Kind.SPATIAL``, ``Kind.TEMPORAL`` or ``Kind.TEXTURAL``.
    head_size
        D.

    Returns
    -------
    tuple of Tensor
        q, k and v, [B, N, S, D].
    """
    generator = torch.Generator(device=device).manual_seed(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    shape = (len(kinds), len(kinds[0]), layout.tokens, head_size)
    q, k, v = noise(*shape), noise(*shape), noise(*shape)
    video = torch.arange(layout.video_tokens, device=device)
    tokens = slice(layout.video_begin, layout.video_begin + layout.video_tokens)
    for b, row in enumerate(kinds):
        for h, kind in enumerate(row):
            if kind is Kind.TEXTURAL:
                continue
            code_of = video % layout.frame if kind is Kind.TEMPORAL else video // layout.frame
            codes = noise(int(code_of[-1]) + 1 if kind is Kind.SPATIAL else layout.frame, head_size)
            q[b, h, tokens] = _CODE_GAIN * codes[code_of] + 0.1 * q[b, h, tokens]
            k[b, h, tokens] = codes[code_of] + 0.1 * k[b, h, tokens]
    return q.to(dtype), k.to(dtype), v.to(dtype)
