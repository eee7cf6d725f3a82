"""Which key windows each row keeps: by rank, by one threshold for many heads, or blindly."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.fidelity.synthetic.cuts import Cut
from benchmarks.fidelity.synthetic.heads import Head, Layout

FLOOR = 0.02  # share of key windows that every row keeps under a threshold
_STEPS = 40


@dataclass(frozen=True)
class Rule:
    """A rule of choice and what becomes of the rest.

    Attributes
    ----------
    score
        ``mean``: product of the windows' means; ``near``: distance of the windows' centres;
        ``random``.
    rest
        ``drop``, ``means`` or ``first``, as in ``benchmarks.film.attend``.
    pool
        Heads that share a budget: ``row``: every row has its own; ``layer`` or ``all``: one
        threshold on predicted probability for the heads of a layer, or for all of them.
    """

    name: str
    cut: str
    score: str = "mean"
    rest: str = "means"
    pool: str = "row"


RULES = (
    Rule("piecewise", "windows"),
    Rule("rainfusion2", "raster", rest="drop"),
    Rule("raster, means", "raster"),
    Rule("raster, means and first order", "raster", rest="first"),
    Rule("raster, means, one threshold for a layer (Sol-Attn)", "raster", pool="layer"),
    Rule("windows, dropped", "windows", rest="drop"),
    Rule("windows, means and first order", "windows", rest="first"),
    Rule("windows, means, one threshold for a layer", "windows", pool="layer"),
    Rule("windows, means, one threshold for all layers", "windows", pool="all"),
    Rule("windows, dropped, one threshold for all layers", "windows", rest="drop", pool="all"),
    Rule("cubes, means", "cubes"),
    Rule("nearest windows, means", "windows", score="near"),
    Rule("random blocks, dropped", "raster", score="random", rest="drop"),
    Rule("random windows, means", "windows", score="random"),
)


@dataclass(frozen=True)
class Rows:
    """Sampled non-sink rows of one head under one cut: scores and what is kept anyway.

    Attributes
    ----------
    scores
        Float32 [rows, key windows].
    shared
        bool of the same shape: windows that share a token with the row's query window.
    """

    scores: Tensor
    shared: Tensor

    def ranks(self) -> Tensor:
        """int64 [rows, key windows]: 0 for the best score, ties to the lower index."""
        order = self.scores.sort(dim=-1, descending=True, stable=True).indices
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)


def rows_of(head: Head, layout: Layout, cut: Cut, rows: Tensor, score: str, seed: int) -> Rows:
    """Scores of some non-sink rows, given by their index behind the sinks."""
    shared = cut.sharing()[cut.queries.window_of[rows]]
    if score == "random":
        generator = torch.Generator(rows.device).manual_seed(seed)
        return Rows(torch.rand(shared.shape, generator=generator, device=rows.device), shared)
    if score == "near":
        axes = [torch.arange(n, device=rows.device) for n in layout.free_grid]
        places = torch.cartesian_prod(*axes)
        a, b = cut.queries.means(places)[cut.queries.window_of[rows]], cut.keys.means(places)
        return Rows(-torch.cdist(a, b).square(), shared)
    q = cut.queries.means(head.q[layout.sinks :])[cut.queries.window_of[rows]]
    k = cut.keys.means(head.k[layout.sinks :])
    return Rows(q @ k.T * head.q.shape[-1] ** -0.5, shared)


def density(layout: Layout, cut: Cut, kept: Tensor, rest: str) -> float:
    """Share of pairs over all rows: exact ones, and pseudo-keys; rows of sinks keep everything."""
    keys = (kept.float() @ cut.keys.sizes).mean() + layout.sinks
    if rest != "drop":
        keys = keys + (~kept).sum(-1).float().mean()
    return float(keys) / layout.tokens * layout.free / layout.tokens + layout.sinks / layout.tokens


def choose(
    pool: Sequence[Rows], layout: Layout, cut: Cut, rule: Rule, wanted: float
) -> tuple[list[Tensor], float]:
    """What the rows of a pool of heads keep, bool each, at the density nearest the wanted one.

    Returns
    -------
    list of Tensor
        bool [rows, key windows] for each head.
    float
        The density, mean over the heads.
    """
    ranks = [rows.ranks() for rows in pool]
    if rule.pool == "row":

        def keep(budget: float) -> list[Tensor]:
            pairs = zip(ranks, pool, strict=True)
            return [(rank < round(budget)) | rows.shared for rank, rows in pairs]

        low, high = 1.0, float(cut.keys.count)
    else:
        least = math.ceil(FLOOR * cut.keys.count)
        logs = [
            torch.log_softmax(rows.scores + cut.keys.sizes.log(), -1).clamp(min=-80)
            for rows in pool
        ]

        def keep(budget: float) -> list[Tensor]:
            triples = zip(logs, ranks, pool, strict=True)
            return [(p >= -budget) | (rank < least) | rows.shared for p, rank, rows in triples]

        low, high = 0.0, 81.0
    return _nearest(keep, lambda k: _mean_density(layout, cut, k, rule.rest), low, high, wanted)


def _mean_density(layout: Layout, cut: Cut, kept: Sequence[Tensor], rest: str) -> float:
    return sum(density(layout, cut, k, rest) for k in kept) / len(kept)


def _nearest(
    keep: Callable[[float], list[Tensor]],
    measure: Callable[[list[Tensor]], float],
    low: float,
    high: float,
    wanted: float,
) -> tuple[list[Tensor], float]:
    """Halve between two budgets, the larger of which keeps more."""
    best: tuple[list[Tensor], float] | None = None
    for _ in range(_STEPS):
        middle = (low + high) / 2
        kept = keep(middle)
        found = measure(kept)
        if best is None or abs(found - wanted) < abs(best[1] - wanted):
            best = kept, found
        if found < wanted:
            low = middle
        else:
            high = middle
        if high - low < 1e-4:
            break
    assert best is not None
    return best
