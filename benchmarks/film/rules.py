"""Rules that choose windows: scores, a budget, and what happens to the rest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from benchmarks.film.attend import attend_dense, attend_windows
from benchmarks.film.scene import Scene
from benchmarks.film.scores import SCORES, Heads
from benchmarks.film.windows import Windows, sharing

CHUNK = 4  # heads attended at once, for memory


@dataclass
class Tally:
    """Sums over calls: share of real pairs, pseudo-keys counted too, work in tiles, calls."""

    sums: list[float] = field(default_factory=lambda: [0.0] * 4)
    kinds: dict[str, int] = field(default_factory=dict)

    def add(self, real: float, total: float, work: float) -> None:
        """Count one call."""
        self.sums = [a + b for a, b in zip(self.sums, (real, total, work, 1.0), strict=True)]

    def count_kind(self, kind: str, heads: int = 1) -> None:
        """Count heads of a kind."""
        self.kinds[kind] = self.kinds.get(kind, 0) + heads


class Rule(Protocol):
    """A replacement for dense attention: [N, S, D] three times to [N, S, D]."""

    name: str
    sparsity: float
    tally: Tally

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor: ...


def budget(windows: int, sparsity: float) -> int:
    """Key windows that a query window keeps: ``ceil(windows * (1 - sparsity))``, at least 1."""
    return max(1, math.ceil(round(windows * (1 - sparsity), 6)))


def choose_rows(scores: Tensor, keep: int) -> Tensor:
    """The best ``keep`` of every row, ties to the lower index."""
    order = scores.sort(dim=-1, descending=True, stable=True).indices[..., :keep]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def choose_layer(scores: Tensor, keep: int) -> Tensor:
    """Pairs above one threshold on predicted probability, ``keep`` a row in the layer's mean."""
    probability = torch.softmax(scores, -1)
    least = probability.flatten().topk(keep * scores.shape[0] * scores.shape[1]).values[-1]
    return probability >= least


@dataclass
class WindowRule:
    """Every query window keeps the best key windows, those it shares a token with, and sinks.

    Attributes
    ----------
    score
        A name in ``scores.SCORES``.
    rest
        Weight of the other windows: see ``attend_windows``.
    spread
        ``row``: the same budget for every query window; ``layer``: one threshold on predicted
        probability for all windows and heads of a layer.
    """

    name: str
    sparsity: float
    scene: Scene
    queries: Windows
    keys: Windows
    score: str = "mean"
    rest: str = "drop"
    spread: str = "row"
    tally: Tally = field(default_factory=Tally)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = Heads(q.float(), k.float(), v.float(), self.scene.sinks)
        kept = self.choose(self.scores(heads))
        self.count(kept)
        return self.run(heads, kept, q.dtype)

    def scores(self, heads: Heads) -> Tensor:
        return SCORES[self.score](heads, self.queries, self.keys)

    def choose(self, scores: Tensor) -> Tensor:
        """bool [N, query windows, key windows]."""
        keep = budget(self.keys.count, self.sparsity)
        chosen = choose_rows(scores, keep) if self.spread == "row" else choose_layer(scores, keep)
        return chosen | sharing(self.queries, self.keys)

    def run(self, heads: Heads, kept: Tensor, dtype: torch.dtype) -> Tensor:
        """Output of all rows for a choice."""
        out = torch.empty_like(heads.q)
        rows = slice(0, heads.sinks)
        out[:, rows] = attend_dense(heads, rows)
        for begin in range(0, len(heads), CHUNK):
            part = slice(begin, begin + CHUNK)
            out[part, heads.sinks :] = attend_windows(
                heads.pick(part), self.queries, self.keys, kept[part], self.rest, dtype
            )
        return out.to(dtype)

    def count(self, kept: Tensor) -> None:
        """Add the densities and the work of a choice to the tally."""
        self.tally.add(*costs(self.scene, self.queries, self.keys, kept, self.rest))


def costs(
    scene: Scene, queries: Windows, keys: Windows, kept: Tensor, rest: str
) -> tuple[float, float, float]:
    """Means over heads: share of real pairs, pseudo-keys counted too, share of dense tiles.

    A window takes whole tiles, however few its tokens are; pseudo-keys take tiles of their own.
    """
    every, sinks = scene.tokens, scene.sinks
    pairs = float(kept.sum()) / len(kept)
    exact = pairs * queries.size * keys.size + every * every - scene.free**2
    pseudo = 0.0 if rest == "drop" else (queries.count * keys.count - pairs) * queries.size
    rows, columns = scene.tile
    tall, wide = -(-queries.size // rows), -(-keys.size // columns)
    tiles = pairs * tall * wide + queries.count * tall * -(-sinks // columns)
    if rest != "drop":
        tiles += queries.count * tall * -(-keys.count // columns)
    tiles += -(-sinks // rows) * -(-every // columns)
    dense = -(-every // rows) * -(-every // columns)
    return exact / every**2, (exact + pseudo) / every**2, tiles / dense


@dataclass
class ShapeRule:
    """Every head takes the window shape whose kept windows hold the most predicted mass."""

    name: str
    sparsity: float
    choices: dict[str, WindowRule]
    tally: Tally = field(default_factory=Tally)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        first = next(iter(self.choices.values()))
        heads = Heads(q.float(), k.float(), v.float(), first.scene.sinks)
        chosen, shares = [], []
        for rule in self.choices.values():
            scores = rule.scores(heads)
            kept = rule.choose(scores)
            chosen.append(kept)
            shares.append((torch.softmax(scores, -1) * kept).sum(-1).mean(-1))
        best = torch.stack(shares).argmax(0)
        out = torch.empty_like(q)
        totals = torch.zeros(3, dtype=torch.float64)
        for number, (shape, rule) in enumerate(self.choices.items()):
            index = (best == number).nonzero().flatten()
            if not len(index):
                continue
            kept = chosen[number][index]
            parts = costs(rule.scene, rule.queries, rule.keys, kept, rule.rest)
            totals += torch.tensor(parts, dtype=torch.float64) * len(index) / len(heads)
            self.tally.count_kind(shape, len(index))
            out[index] = rule.run(heads.pick(index), kept, q.dtype)
        self.tally.add(*totals.tolist())
        return out
