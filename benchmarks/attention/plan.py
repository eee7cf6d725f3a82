"""Read the lists that our kernels compute off their plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.attention.cases import Lists
from rainfusion_trt import classify_heads
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import native
from rainfusion_trt.operator.cuda_ops import launch
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, block_shape
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings

ALPHA = 0.7
"""Recall from which a head is temporal or spatial.

Below the default, so that the narrow band of s = .9 leaves spatial heads spatial at every size;
heads without a pattern recall no more than the band's share, .5 at s = .5.
"""


@dataclass(frozen=True)
class PlannedLists:
    """Heads at one sparsity, as the plan of our kernels or `flex_lists` has them.

    Attributes
    ----------
    sparsity
        s; that of random lists has been found from their density.
    kind
        int32 [B, N].
    density
        Share of token pairs computed, mean over heads.
    shape
        Of the blocks.
    kept
        bool [B, N, q_blocks, k_blocks]; everything for textural heads.
    """

    sparsity: float
    kind: Tensor
    density: float
    shape: BlockShape
    kept: Tensor


def arguments_of(layout: TokenLayout, lists: Lists, sparsity: float | Tensor) -> dict[str, Any]:
    """Keyword arguments of ``rainfusion_attention`` and ``classify_heads``."""
    return {
        "text": layout.text,
        "sink_frames": layout.sink_frames,
        "method": lists.method,
        "alpha": ALPHA,
        "sparsity": sparsity,
    }


def planned(
    q: Tensor, k: Tensor, layout: TokenLayout, lists: Lists, kinds: list[Kind]
) -> PlannedLists:
    """Classify the heads and export the plan.

    Parameters
    ----------
    kinds
        The kind that each head of a batch element was made.

    Raises
    ------
    InvalidInputError
        A head was found to be of another kind, or a density cannot be reached.
    """
    sparsity = lists.sparsity
    if sparsity is None:
        assert lists.density is not None
        sparsity = sparsity_for(
            lists.density,
            lambda s: (
                classify_heads(q, k, layout.grid, **arguments_of(layout, lists, s))
                .density.mean()
                .item()
            ),
        )
    plan, kept = export_plan(q, k, layout, arguments_of(layout, lists, sparsity))
    if lists.heads == "random":
        kinds = [Kind.BLOCKS] * len(kinds)
    elif lists.dense:
        kinds = [Kind.DENSE] * len(kinds)
    if plan.kind.tolist() != [kinds] * q.shape[0]:
        raise InvalidInputError(
            f"{lists} on grid {layout.grid}: heads made to be {[x.name for x in kinds]} were found "
            f"to be {plan.kind.tolist()}; change ALPHA in benchmarks/attention/plan.py"
        )
    shape = block_shape(q.shape[-1])
    return PlannedLists(sparsity, plan.kind, plan.density.mean().item(), shape, kept)


def export_plan(
    q: Tensor, k: Tensor, layout: TokenLayout, arguments: dict[str, Any]
) -> tuple[HeadPlan, Tensor]:
    """Kinds and densities, and the kept block pairs, bool [B, N, q_blocks, k_blocks]."""
    blocks = [len(layout.blocks(size)) for size in block_shape(q.shape[-1])]
    plan = HeadPlan.empty(q)
    kept = torch.empty(*q.shape[:2], *blocks, dtype=torch.uint8, device=q.device)
    plan_only(q, k, layout, arguments, native.Plan.of(plan, kept))()
    return plan, kept.bool()


def plan_only(
    q: Tensor,
    k: Tensor,
    layout: TokenLayout,
    arguments: dict[str, Any],
    plan: native.Plan | None = None,
) -> Callable[[], None]:
    """ARM, plan and the table of gathered rows, without attention."""
    given = dict(arguments)
    sparsity = torch.full((1,), float(given.pop("sparsity")), device=q.device)
    settings = AttentionSettings(**given)
    target = native.Plan() if plan is None else plan
    return lambda: launch(
        "classify", (q, k, k, None), layout.grid, sparsity, None, settings, plan=target
    )


def sparsity_for(density: float, density_of: Callable[[float], float]) -> float:
    """The s, to four decimals, at which `density_of` (falling) comes nearest to `density`."""
    low, high = 0, 9999  # in ten-thousandths
    if density_of(high / 1e4) > density:
        raise InvalidInputError(
            f"density {density} is less than what is always kept, {density_of(high / 1e4):.4f}"
        )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if density_of(middle / 1e4) <= density else (middle, high)
    return min((low / 1e4, high / 1e4), key=lambda s: abs(density_of(s) - density))
