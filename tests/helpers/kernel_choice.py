"""Which windows the kernels of method piecewise choose, held against the reference's scores.

Two scores that differ by less than float32 rounds may be chosen either way.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from helpers.layouts import places_of
from rainfusion_trt.operator import native
from rainfusion_trt.operator.cuda_ops import launch
from rainfusion_trt.operator.geometry import BlockShape, TokenLayout, kept_blocks
from rainfusion_trt.operator.piecewise import Windows, means
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings


def lengths_of(layout: TokenLayout, kv_len: Tensor | None, batch: int) -> list[int]:
    """Valid tokens of each clip of a batch."""
    return [layout.tokens] * batch if kv_len is None else kv_len.tolist()


def kernels_choice(
    layout: TokenLayout,
    windows: Windows,
    q: Tensor,
    k: Tensor,
    sparsity: float,
    kv_len: Tensor | None = None,
    precision: str = "16bit",
) -> Tensor:
    """bool [B, N, query windows, key windows], with the rest of the block mask checked."""
    settings = AttentionSettings.of(method="piecewise", precision=precision, **places_of(layout))
    q_cut, k_cut = windows.q_cut, windows.k_cut
    mask = q.new_full((*q.shape[:2], q_cut.blocks, k_cut.blocks), 7, dtype=torch.uint8)
    heads = HeadPlan.empty(q)  # outlives the launch
    on_device = torch.tensor([sparsity], device=q.device)
    plan = native.Plan.of(heads, mask)
    launch("classify", (q, k, k, None), layout.grid, on_device, kv_len, settings, plan=plan)
    assert mask.max() <= 1
    mask = mask.bool()
    rows = slice(q_cut.leading_sinks, q_cut.leading_sinks + q_cut.windows)
    columns = slice(k_cut.leading_sinks, k_cut.leading_sinks + k_cut.windows)
    chosen = mask[:, :, rows, columns].clone()
    mask[:, :, rows, columns] = True
    assert mask.all()  # sinks attend to everything, and everything to sinks
    return chosen


def check_choice(
    layout: TokenLayout,
    shape: BlockShape,
    q: Tensor,
    k: Tensor,
    sparsity: float,
    kv_len: Tensor | None = None,
    *,
    spread: bool = True,
) -> Tensor:
    """The kernels' choice, which differs from the reference's at equal scores alone.

    Parameters
    ----------
    spread
        That few scores are equal is checked as well, or little would be held to the reference.
        Heads that look at places near in the raster have many equal ones.
    """
    windows = Windows(layout, shape, q.device)
    chosen = kernels_choice(layout, windows, q, k, sparsity, kv_len)
    scale = q.shape[-1] ** -0.5
    for b, length in enumerate(lengths_of(layout, kv_len, len(q))):
        candidates = windows.counts(length) > 0
        keep = min(kept_blocks(sparsity, windows.k_cut.windows), int(candidates.sum()))
        heads = zip(q[b], k[b], strict=True)
        wanted = torch.stack([windows.choose(*head, sparsity, scale, length) for head in heads])
        assert not (chosen[b] & ~candidates).any()
        if keep == 0:
            assert torch.equal(chosen[b], wanted)
            continue
        near, asks = near_the_last(windows, shape, q[b], k[b], keep, candidates, length)
        assert not ((chosen[b] != wanted) & ~near).any()
        # Most are held to the reference's choice: besides the last one itself few are near it.
        others = (near.sum(2) - 1) / windows.k_cut.windows
        mean = others.masked_fill(~asks, 0.0).sum(1) / asks.sum(1).clamp(min=1)
        assert not spread or (mean < 0.1).all()
        assert (chosen[b].sum(2) >= keep).all()
    return chosen


def near_the_last(
    windows: Windows,
    shape: BlockShape,
    q: Tensor,
    k: Tensor,
    keep: int,
    candidates: Tensor,
    length: int,
) -> tuple[Tensor, Tensor]:
    """Windows whose scores may round to that of the last one chosen, and queries that score at all.

    Parameters
    ----------
    q, k
        [N, S, D] of one clip.
    candidates
        bool [key windows]: those with a valid token.
    """
    scale = q.shape[-1] ** -0.5
    q_means, k_means = (
        torch.stack([means(head, tokens, length).double() for head in x])
        for x, tokens in ((q, windows.q_tokens), (k, windows.k_tokens))
    )
    scores = (q_means @ k_means.mT * scale).masked_fill(~candidates, -math.inf)
    last = scores.sort(dim=2, descending=True).values[..., keep - 1 : keep]
    # Of the means and of the product, each of both sides.
    error = 8 * (q.shape[-1] + shape.q + shape.k) * 2.0**-24 * scale
    q_norms, k_norms = (x.norm(dim=2) for x in (q_means, k_means))
    bound = error * q_norms[:, :, None] * k_norms[:, None]
    near = (scores - last).abs() <= bound + bound.amax(2, keepdim=True)
    return near, q_norms > 0
