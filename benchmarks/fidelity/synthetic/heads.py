"""Queries, keys and values of a head that needs a given share of keys.

A head looks at what is near its query, in an ellipsoid of frames, rows and columns of its own, and
at what is like it elsewhere. How sharply is found so that the share of keys that holds 95 % of the
mass is the one asked for. The profiles say how many keys a head needs, not which: the ellipsoids
are this module's assumption.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.film.coverage import keys_for
from benchmarks.film.scene import ClipTokens, Shape

MASS = 0.95
SEARCH_ROWS = 64
NOISE = 0.5  # of what no window can know, against what place and likeness decide


@dataclass(frozen=True)
class Layout(ClipTokens):
    """A clip of a released model."""

    grid: Shape
    text: int


@dataclass(frozen=True)
class Recipe:
    """What a head is made from.

    Attributes
    ----------
    share
        Share of keys that is to hold 95 % of the mass.
    lengths
        How far it looks, in frames, rows and columns.
    """

    share: float
    lengths: tuple[float, float, float]
    seed: int


@dataclass(frozen=True)
class Head:
    """q, k and v [S, D], and the share of keys that they came to."""

    q: Tensor
    k: Tensor
    v: Tensor
    share: float


def recipe_for(share: float, layout: Layout, seed: int) -> Recipe:
    """Lengths drawn evenly on a logarithmic scale, from one token to the whole clip."""
    draws = random.Random(seed)
    lengths = [math.exp(draws.uniform(0, math.log(max(2, extent)))) for extent in layout.free_grid]
    return Recipe(share, (lengths[0], lengths[1], lengths[2]), seed)


def make_head(
    recipe: Recipe, layout: Layout, size: int, device: torch.device, dtype: torch.dtype
) -> Head:
    """A head, the same for the same recipe on one device."""
    generator = torch.Generator(device).manual_seed(recipe.seed)
    near = _field(layout, recipe.lengths, size, generator)
    extents = layout.grid
    alike = _field(layout, (extents[0] / 2, extents[1] / 4, extents[2] / 4), size, generator)
    alike = torch.tanh(3 * alike)  # regions of one look, repeated over the clip
    like = near + 0.5 * alike
    q, k = (like + NOISE * _noise(like, generator) for _ in range(2))
    v = _field(layout, recipe.lengths, size, generator) + NOISE * _noise(like, generator)
    rows = torch.randperm(layout.free, generator=generator, device=device)[:SEARCH_ROWS]
    q, share = _sharpened(q, k, layout.sinks + rows, recipe.share)
    return Head(q.to(dtype), k.to(dtype), v.to(dtype), share)


def _field(
    layout: Layout, lengths: tuple[float, float, float], size: int, generator: torch.Generator
) -> Tensor:
    """Random waves [S, D] that change over the lengths; text is noise of the same norm."""
    device = generator.device
    axes = [torch.arange(n, device=device, dtype=torch.float32) for n in layout.grid]
    places = torch.cartesian_prod(*axes) / torch.tensor(lengths, device=device)
    waves = torch.randn(3, size, generator=generator, device=device)
    phases = 2 * math.pi * torch.rand(size, generator=generator, device=device)
    text = torch.randn(layout.text, size, generator=generator, device=device)
    return torch.cat([text, math.sqrt(2) * torch.cos(places @ waves + phases)])


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=like.device)


def _sharpened(q: Tensor, k: Tensor, rows: Tensor, share: float) -> tuple[Tensor, float]:
    """Queries times the factor at which the rows need a share of keys, found by halving."""
    scores = q[rows] @ k.T * q.shape[-1] ** -0.5
    low, high = -8.0, 8.0  # logarithms of the factor
    found = 1.0
    for _ in range(24):
        middle = (low + high) / 2
        found = float(keys_for(torch.softmax(math.exp(middle) * scores, -1), MASS).mean())
        if found > share:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2) * q, found
