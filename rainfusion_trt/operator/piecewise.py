"""Method ``piecewise`` in plain PyTorch: which key windows a query window keeps, and the means.

``docs/rainfusion.md`` gives the rules. The reference attends to what is chosen here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import BlockShape, TokenLayout, kept_blocks
from rainfusion_trt.operator.windows import WindowCut, windows_meet


class Windows:
    """The windows of a call, which all its heads share.

    Attributes
    ----------
    q_cut, k_cut : WindowCut
        Runs of sinks and windows of queries and of keys.
    q_tokens, k_tokens : Tensor
        int64 [windows, n]: tokens of each window, -1 behind the last.
    """

    def __init__(self, layout: TokenLayout, shape: BlockShape, device: torch.device) -> None:
        self.q_cut, self.k_cut = (WindowCut(layout, size) for size in shape)
        self.q_tokens, self.k_tokens = (cut.tokens_of(device) for cut in (self.q_cut, self.k_cut))
        q_exact, k_exact = (cut.is_exact(device) for cut in (self.q_cut, self.k_cut))
        self._always = windows_meet(self.q_cut, self.k_cut, device) | q_exact[:, None] | k_exact
        self._k_window_of = self.k_cut.window_of(device)

    def choose(self, q: Tensor, k: Tensor, sparsity: float, scale: float, kv_len: int) -> Tensor:
        """Key windows that each query window attends to exactly: q, k [S, D].

        Returns
        -------
        Tensor
            bool [query windows, key windows]; windows without a token below `kv_len` are in none.
        """
        scores = means(q, self.q_tokens, kv_len) @ means(k, self.k_tokens, kv_len).T * scale
        candidates = self.counts(kv_len) > 0
        scores = scores.masked_fill(~candidates, -math.inf)
        keep = kept_blocks(sparsity, self.k_cut.windows)
        best = torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :keep]
        kept = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, True)
        return (kept | self._always) & candidates

    def counts(self, kv_len: int) -> Tensor:
        """int64 [key windows]: the tokens of each below `kv_len`."""
        return valid(self.k_tokens, kv_len).sum(1)

    def keys(self, chosen: Tensor) -> Tensor:
        """bool [S]: sinks, and the tokens of the key windows that one query window chose."""
        window = self._k_window_of
        return (window < 0) | chosen[window.clamp(min=0)]

    def pseudo(self, k: Tensor, v: Tensor, kv_len: int) -> tuple[Tensor, Tensor, Tensor]:
        """What stands for each key window in softmax: k, v [S, D].

        Returns
        -------
        tuple of Tensor
            float32: mean keys and mean values [key windows, D], rounded to the type of k and v, and
            the logarithms of how many tokens they stand for [key windows].
        """
        key, value = (means(x, self.k_tokens, kv_len).to(x.dtype).float() for x in (k, v))
        return key, value, self.counts(kv_len).float().log()


def valid(tokens: Tensor, kv_len: int) -> Tensor:
    """Which entries of a table of tokens are tokens below `kv_len`."""
    return (tokens >= 0) & (tokens < kv_len)


def means(x: Tensor, tokens: Tensor, kv_len: int) -> Tensor:
    """float32 [windows, D]: means of x [S, D] over each window below `kv_len`, 0 if it has none."""
    real = valid(tokens, kv_len)
    # Selected and not multiplied: what is past kv_len may be NaN.
    rows = torch.where(real[..., None], x[tokens.clamp(min=0)].float(), 0.0)
    return rows.sum(1) / real.sum(1, keepdim=True).clamp(min=1)
