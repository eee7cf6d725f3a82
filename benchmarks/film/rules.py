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
from benchmarks.film.windows import PARTS, Windows, sharing

CHUNK = 4  # heads attended at once, for memory
FLOOR = 0.04  # of all key windows, which a row keeps whatever their mass


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


def choose_mass(scores: Tensor, share: float, least: int) -> Tensor:
    """Of every row the fewest with so much of its predicted probability, but ``least``."""
    probability, order = torch.softmax(scores, -1).sort(dim=-1, descending=True, stable=True)
    wanted = probability.cumsum(-1) - probability < share  # what the better ones leave short of it
    wanted[..., :least] = True
    return torch.zeros_like(wanted).scatter_(-1, order, wanted)


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
        probability for all windows and heads of a layer; ``mass``: as many windows as hold a
        share of 1 - sparsity of the predicted probability, in every layer, head and step, and
        no fewer than ``FLOOR`` of all.
    finer
        Of the windows left out, as many of the best as a row's budget times this are known by
        the means of their parts.
    """

    name: str
    sparsity: float
    scene: Scene
    queries: Windows
    keys: Windows
    score: str = "mean"
    rest: str = "drop"
    spread: str = "row"
    finer: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = Heads(q.float(), k.float(), v.float(), self.scene.sinks)
        scores = self.scores(heads)
        kept = self.choose(scores)
        parted = self.choose_finer(scores, kept)
        self.count(kept, parted)
        return self.run(heads, kept, q.dtype, parted)

    def scores(self, heads: Heads) -> Tensor:
        return SCORES[self.score](heads, self.queries, self.keys)

    def choose(self, scores: Tensor) -> Tensor:
        """bool [N, query windows, key windows]."""
        keep = budget(self.keys.count, self.sparsity)
        if self.spread == "mass":
            least = budget(self.keys.count, 1 - FLOOR)
            chosen = choose_mass(scores, 1 - self.sparsity, least)
        elif self.spread == "layer":
            chosen = choose_layer(scores, keep)
        else:
            chosen = choose_rows(scores, keep)
        return chosen | sharing(self.queries, self.keys)

    def choose_finer(self, scores: Tensor, kept: Tensor) -> Tensor | None:
        """bool as ``kept``: windows known by the means of their parts, none of which is kept."""
        number = round(self.finer * budget(self.keys.count, self.sparsity))
        if not number:
            return None
        return choose_rows(scores.masked_fill(kept, -math.inf), number) & ~kept

    def run(
        self, heads: Heads, kept: Tensor, dtype: torch.dtype, parted: Tensor | None = None
    ) -> Tensor:
        """Output of all rows for a choice."""
        out = torch.empty_like(heads.q)
        rows = slice(0, heads.sinks)
        out[:, rows] = attend_dense(heads, rows)
        for begin in range(0, len(heads), CHUNK):
            part = slice(begin, begin + CHUNK)
            out[part, heads.sinks :] = attend_windows(
                heads.pick(part),
                self.queries,
                self.keys,
                kept[part],
                self.rest,
                dtype,
                None if parted is None else parted[part],
            )
        return out.to(dtype)

    def count(self, kept: Tensor, parted: Tensor | None = None) -> None:
        """Add the densities and the work of a choice to the tally."""
        self.tally.add(*costs(self.scene, self.queries, self.keys, kept, self.rest, parted))


def costs(
    scene: Scene,
    queries: Windows,
    keys: Windows,
    kept: Tensor,
    rest: str,
    parted: Tensor | None = None,
) -> tuple[float, float, float]:
    """Means over heads: share of real pairs, pseudo-keys counted too, share of dense tiles.

    A window takes whole tiles, however few its tokens are; pseudo-keys take tiles of their own,
    and those of parts, of which every row has others, take whole tiles too.
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
    if parted is not None:
        parts = PARTS * parted.sum(-1)  # of every query window
        pseudo += float(parts.sum() - parted.sum()) / len(kept) * queries.size
        tiles += float((parts / columns).ceil().sum()) / len(kept) * tall
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
