"""Scores by which key windows are chosen for a query window.

Every score is float32 [N, query windows, key windows]; larger is chosen first. Scores of heads are
logarithms of an estimated softmax mass per key token up to a constant of the row, except ``random``
and the static ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.film.windows import PARTS, Windows


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values [N, S, D] of some heads, in float32; the sinks come first."""

    q: Tensor
    k: Tensor
    v: Tensor
    sinks: int

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5

    @property
    def free_q(self) -> Tensor:
        return self.q[:, self.sinks :]

    @property
    def free_k(self) -> Tensor:
        return self.k[:, self.sinks :]

    @property
    def free_v(self) -> Tensor:
        return self.v[:, self.sinks :]

    def pick(self, index: Tensor | slice) -> Heads:
        """Some of the heads."""
        return Heads(self.q[index], self.k[index], self.v[index], self.sinks)

    def __len__(self) -> int:
        return self.q.shape[0]


def mean_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Scaled product of the mean query and the mean key."""
    q, k = queries.means(heads.free_q), keys.means(heads.free_k)
    return q @ k.transpose(1, 2) * heads.scale


def sub_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Log of the mean of the 16 exponentials of scaled products of sub-window means.

    Sub-windows have equal numbers of tokens, so that weights by tokens are equal.
    """
    q = queries.means(heads.free_q, PARTS).unflatten(1, (queries.count, PARTS))
    k = keys.means(heads.free_k, PARTS).unflatten(1, (keys.count, PARTS))
    products = torch.einsum("hiad,hjbd->hijab", q, k).flatten(3) * heads.scale
    return torch.logsumexp(products, -1) - math.log(PARTS * PARTS)


def covariance_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Scores of means plus the log of the norm of each window's covariance of key and value."""
    k, v = keys.gather(heads.free_k), keys.gather(heads.free_v)
    covariance = (k - k.mean(2, keepdim=True)).transpose(2, 3) @ v / keys.size
    norm = covariance.flatten(2).norm(dim=-1)
    return mean_scores(heads, queries, keys) + torch.log(norm + 1e-9)[:, None]


def mass_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Log of the true softmax mass, which no rule can know before it computes everything."""
    rows = []
    for head in range(len(heads)):
        weights = torch.softmax(heads.free_q[head] @ heads.k[head].T * heads.scale, -1)
        columns = weights[:, heads.sinks :][:, keys.tokens.flatten()]
        per_key = columns.unflatten(1, (keys.count, keys.size)).sum(2)
        rows.append(per_key[queries.tokens].mean(1))
        del weights, columns
    return torch.stack(rows).clamp(min=1e-30).log()


def random_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Uniform noise."""
    return torch.rand(len(heads), queries.count, keys.count, device=heads.q.device)


def near_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Nearness of the windows' centres in frames, rows and columns."""
    return _nearness(heads, queries, keys, (1.0, 1.0, 1.0))


def place_scores(heads: Heads, queries: Windows, keys: Windows) -> Tensor:
    """Nearness of the windows' centres in rows and columns; frames decide between equals."""
    return _nearness(heads, queries, keys, (1e-3, 1.0, 1.0))


def _nearness(
    heads: Heads, queries: Windows, keys: Windows, weights: tuple[float, float, float]
) -> Tensor:
    steps = queries.centres()[:, None] - keys.centres()[None]
    distance = (steps.square() * steps.new_tensor(weights)).sum(-1)
    return -distance.expand(len(heads), -1, -1)


Score = Callable[[Heads, Windows, Windows], Tensor]
SCORES: dict[str, Score] = {
    "mean": mean_scores,
    "sub": sub_scores,
    "covariance": covariance_scores,
    "mass": mass_scores,
    "random": random_scores,
    "near": near_scores,
    "place": place_scores,
}
