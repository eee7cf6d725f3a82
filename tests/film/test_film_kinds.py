"""RainFusion's kinds as token masks, against loops over pairs."""

import math

import pytest
import torch

from benchmarks.film.kinds import KindRule
from benchmarks.film.scene import TINY
from benchmarks.film.scores import Heads
from benchmarks.film.windows import boxes

SINKS, PLACE, WIDTH = TINY.sinks, TINY.place, TINY.grid[2]


def heads_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [2.0 * torch.randn(1, TINY.tokens, 16, generator=generator) for _ in range(3)]


def in_kind(kind, a, b, sparsity):
    band = 1 - math.sqrt(sparsity)
    if kind == "spatial":
        return abs(a - b) < band * TINY.free
    if kind == "temporal":
        return abs(a % PLACE - b % PLACE) < band * PLACE
    place = b % PLACE
    return (place // WIDTH - place % WIDTH) % max(2, round(1 / (1 - sparsity))) == 0


def masked(q, k, v, keep):
    logits = (q[0] @ k[0].T / 4).masked_fill(~keep, -math.inf)
    return torch.softmax(logits, -1) @ v[0]


@pytest.mark.parametrize("kind", ["spatial", "temporal", "textural"])
@pytest.mark.parametrize("sparsity", [0.8, 0.64])
def test_forced_kinds_agree_with_masks(kind, sparsity):
    q, k, v = heads_of()
    keep = torch.ones(TINY.tokens, TINY.tokens, dtype=torch.bool)
    for a in range(TINY.free):
        for b in range(TINY.free):
            keep[SINKS + a, SINKS + b] = in_kind(kind, a, b, sparsity)
    rule = KindRule(kind, sparsity, TINY, forced=kind)
    torch.testing.assert_close(rule(q, k, v)[0], masked(q, k, v, keep), atol=1e-5, rtol=0)
    assert rule.tally.sums[0] == pytest.approx(float(keep.float().mean()))
    assert rule.tally.kinds == {kind: 1}


def test_left_out_tokens_count_by_their_means():
    q, k, v = heads_of()
    windows = boxes(TINY.free_grid, (2, 2, 4))
    kept = [b for b in range(TINY.free) if in_kind("textural", 0, b, 0.8)]
    keys, values = [k[0, :SINKS], k[0, SINKS:][kept]], [v[0, :SINKS], v[0, SINKS:][kept]]
    weights = [1.0] * (SINKS + len(kept))
    for tokens in windows.tokens.tolist():
        left = [t for t in tokens if t not in kept]
        keys.append(k[0, SINKS:][left].mean(0, keepdim=True))
        values.append(v[0, SINKS:][left].mean(0, keepdim=True))
        weights.append(float(len(left)))
    logits = q[0, SINKS:] @ torch.cat(keys).T / 4 + torch.tensor(weights).log()
    wanted = torch.softmax(logits, -1) @ torch.cat(values)
    rule = KindRule("t", 0.8, TINY, forced="textural", windows=windows)
    torch.testing.assert_close(rule(q, k, v)[0, SINKS:], wanted, atol=1e-5, rtol=0)
    assert rule.tally.sums[1] > rule.tally.sums[0]


def test_heads_are_told_apart():
    """A head that looks at its own place is temporal, one at its own frame spatial."""
    raster = torch.arange(TINY.free)
    place, frame = raster % PLACE, raster // PLACE
    rule = KindRule("k", 0.64, TINY)
    kinds = []
    for position, extent in ((place, PLACE), (frame, 4), (None, 1)):
        q = torch.zeros(1, TINY.tokens, 16)
        if position is None:
            k = q.clone()
        else:
            angle = position * math.pi / extent
            q[0, SINKS:, :2] = 40 * torch.stack([angle.cos(), angle.sin()], 1)
            k = q.clone()
        kinds += rule.classify(Heads(q, k, k, SINKS))
    assert kinds == ["temporal", "spatial", "textural"]


def test_the_larger_recall_replaces_textural():
    q, k, v = heads_of()
    heads = Heads(q, k, v, SINKS)
    rule = KindRule("k", 0.8, TINY, fallback="larger")
    recalls = {kind: float(rule.recall(heads, kind)) for kind in ("temporal", "spatial")}
    assert max(recalls.values()) < 0.9
    assert rule.classify(heads) == [max(recalls, key=recalls.get)]
    assert KindRule("k", 0.8, TINY).classify(heads) == ["textural"]
