"""The reference against brute force on small grids, for every kind, method and odd shape."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from helpers import brute_force
from helpers.layouts import exact_of, places_of, sinks_of
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import (
    METHODS,
    Kind,
    TokenLayout,
    band_of,
    block_shape,
    kept_blocks,
)
from rainfusion_trt.testing import synthetic_heads

NAMES = {
    Kind.DENSE: "dense",
    Kind.SPATIAL: "spatial",
    Kind.TEMPORAL: "temporal",
    Kind.TEXTURAL: "textural",
}
# Odd and even grids, frames smaller and larger than a block, two free frames, no sink at all, sinks
# at the end, alone or not, of a share of a block and of several blocks; text of one token, and one
# token short of a block and more than one, of keys and of queries.
CASES = [
    # grid, text tokens, text, sink frames at the begin and, if there are some, at the end
    ((4, 9, 15), 0, "none", 1),
    ((4, 9, 15), 1, "first", 1),
    ((3, 16, 16), 127, "last", 1),
    ((5, 7, 11), 129, "first", 0),
    ((9, 5, 7), 20, "last", 2),
    ((2, 1, 129), 3, "first", 0),
    ((3, 8, 24), 191, "last", 1),
    ((3, 8, 24), 193, "first", 1),
    ((5, 9, 15), 20, "last", 1, 1),
    ((4, 16, 16), 0, "none", 0, 2),
    ((8, 5, 7), 129, "first", 2, 3),
]
# Exact frames among sinks, beside them and apart, in blocks that hold parts of several frames.
EXACT_CASES = [
    ((9, 9, 15), 130, "first", 1, 1, ((0, 2), (5, 6))),
    ((11, 5, 7), 20, "last", 2, 0, ((4, 5), (7, 9))),
]
D = 16
# A head size of each block shape; what does not depend on it is tested at the first, for speed.
HEAD_SIZES = [D, 96, 128]
SPARSITIES = [(0.3, D), (0.5, D), (0.64, D), (0.8, D), (0.5, 96), (0.8, 96), (0.5, 128), (0.8, 128)]


def heads(case, kinds, head_size=D, seed=0):
    grid, text_tokens, text, *sinks = case
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    q, k, v = synthetic_heads(layout, kinds, head_size, seed=seed)
    # Scores as large as at D, whose rounding in float32 is what the tolerances allow for.
    return layout, (q * math.sqrt(D / head_size), k, v)


def expected_head(q, k, v, layout, sparsity, kind, kv_len=None):
    places = (layout.grid, layout.tokens, layout.text, sinks_of(layout))
    mask = brute_force.attended(NAMES[kind], sparsity, *places, q.shape[-1], exact_of(layout))
    if kv_len is not None:
        mask = mask & (np.arange(layout.tokens) < kv_len)
    q, k, v = (x.double().numpy() for x in (q, k, v))
    return brute_force.attention(q, k, v, mask, 1 / math.sqrt(q.shape[-1])), mask


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("sparsity", "head_size"), SPARSITIES)
def test_three_kinds_match_brute_force(case, sparsity, head_size):
    kinds = [[Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL]] * 2
    layout, (q, k, v) = heads(case, kinds, head_size)
    arguments = {**places_of(layout), "sparsity": sparsity, "method": "rainfusion"}
    out = reference.rainfusion_attention(q, k, v, layout.grid, **arguments)
    plan = reference.classify_heads(q, k, layout.grid, **arguments)
    for b in range(2):
        for h in range(3):
            wanted = brute_force.recalls(
                q[b, h].double().numpy(),
                k[b, h].double().numpy(),
                sparsity,
                layout.grid,
                layout.tokens,
                layout.text,
                sinks_of(layout),
                1 / math.sqrt(head_size),
            )
            temporal, spatial = wanted
            np.testing.assert_allclose(plan.recall_temporal[b, h], temporal, atol=1e-4)
            np.testing.assert_allclose(plan.recall_spatial[b, h], spatial, atol=1e-4)
            kind = (
                Kind.TEMPORAL
                if temporal >= 0.9
                else Kind.SPATIAL
                if spatial >= 0.9
                else Kind.TEXTURAL
            )
            assert plan.kind[b, h] == kind
            result, mask = expected_head(q[b, h], k[b, h], v[b, h], layout, sparsity, kind)
            # float32 sums of at most a thousand unit-scale terms
            np.testing.assert_allclose(out[b, h].numpy(), result, atol=2e-5)
            np.testing.assert_allclose(plan.density[b, h], mask.mean(), rtol=1e-6)


def test_synthetic_heads_are_found():
    kinds = [
        [Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL],
        [Kind.TEXTURAL, Kind.SPATIAL, Kind.TEMPORAL],
    ]
    layout = TokenLayout((9, 12, 20), 9 * 240 + 30, "first")
    q, k, _ = synthetic_heads(layout, kinds, 64)
    plan = reference.classify_heads(
        q, k, layout.grid, text="first", sparsity=0.5, method="rainfusion"
    )
    assert plan.kind.tolist() == kinds


@pytest.mark.parametrize("kind", list(NAMES), ids=NAMES.get)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("kv_len", [1, 79, 127, 191, 193, 300, 540])
def test_keys_past_kv_len_are_not_attended(kind, head_size, kv_len):
    layout, (q, k, v) = heads(((4, 9, 15), 30, "last", 1), [[kind]] * 2, head_size)
    sparsity = 0.0 if kind is Kind.DENSE else 0.5
    lengths = torch.tensor([kv_len, layout.tokens], dtype=torch.int32)
    arguments = {"text": "last", "sparsity": sparsity, "kv_len": lengths, "method": "rainfusion"}
    plan = reference.classify_heads(q, k, layout.grid, **arguments)
    out = reference.rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert out.isfinite().all()
    for b in range(2):
        found = Kind(int(plan.kind[b, 0]))
        result, mask = expected_head(
            q[b, 0], k[b, 0], v[b, 0], layout, sparsity, found, int(lengths[b])
        )
        rows = int(lengths[b])
        np.testing.assert_allclose(out[b, 0, :rows].numpy(), result[:rows], atol=2e-5)
        density = mask.sum() / (layout.tokens * rows)
        np.testing.assert_allclose(plan.density[b, 0], density, rtol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_sparsity_zero_is_dense_attention(method):
    layout, (q, k, v) = heads(((3, 9, 15), 5, "first", 1), [[Kind.TEXTURAL] * 2])
    out = reference.rainfusion_attention(
        q, k, v, layout.grid, text="first", sparsity=0.0, method=method
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, wanted, atol=2e-6, rtol=0)
    plan = reference.classify_heads(q, k, layout.grid, text="first", sparsity=0.0, method=method)
    assert (plan.kind == Kind.DENSE).all()
    assert plan.recall_temporal.isnan().all()
    assert (plan.density == 1).all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grid", [(1, 8, 40), (2, 8, 40)])
def test_fewer_than_two_free_frames_are_dense(grid, method):
    q = torch.randn(1, 1, math.prod(grid), D)
    plan = reference.classify_heads(q, q, grid, sparsity=0.8, method=method)
    assert (plan.kind == Kind.DENSE).all()


def test_two_way_never_says_textural():
    layout, (q, k, _) = heads(CASES[0], [[Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL]])
    plan = reference.classify_heads(q, k, layout.grid, sparsity=0.8, method="rainfusion_two_way")
    wanted = torch.where(
        (plan.recall_temporal > 0.95) | (plan.recall_temporal > plan.recall_spatial), 2, 1
    )
    assert torch.equal(plan.kind, wanted.int())


@pytest.mark.parametrize("case", EXACT_CASES, ids=str)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_two_way_keeps_exact_frames(case, sparsity):
    layout, (q, k, v) = heads(case, [[Kind.SPATIAL, Kind.TEMPORAL]])
    arguments = {**places_of(layout), "sparsity": sparsity, "method": "rainfusion_two_way"}
    out = reference.rainfusion_attention(q, k, v, layout.grid, **arguments)
    plan = reference.classify_heads(q, k, layout.grid, **arguments)
    assert plan.kind.tolist() == [[Kind.SPATIAL, Kind.TEMPORAL]]
    for h, kind in enumerate(Kind(code) for code in plan.kind[0].tolist()):
        wanted, mask = expected_head(q[0, h], k[0, h], v[0, h], layout, sparsity, kind)
        is_exact = np.isin(np.arange(layout.tokens), layout.is_exact().nonzero())
        assert mask[is_exact].all() and mask[:, is_exact].all()
        np.testing.assert_allclose(out[0, h], wanted, atol=2e-5)
        np.testing.assert_allclose(plan.density[0, h], mask.mean(), rtol=1e-6)


@pytest.mark.parametrize("method", ["piecewise", "rainfusion2", "rainfusion_two_way"])
def test_rows_of_exact_frames_are_those_of_dense_attention(method):
    grid, exact = (12, 9, 15), (4, (7, 9))
    generator = torch.Generator().manual_seed(3)
    q, k, v = torch.randn(3, 1, 1, math.prod(grid), D, generator=generator).unbind(0)
    arguments = {"method": method, "sparsity": 0.9}
    out = reference.rainfusion_attention(q, k, v, grid, exact_frames=exact, **arguments)
    usual = reference.rainfusion_attention(q, k, v, grid, **arguments)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    rows = torch.tensor([4, 7, 8])
    of_frames = [x[0, 0].unflatten(0, (grid[0], -1)) for x in (out, usual, dense)]
    torch.testing.assert_close(of_frames[0][rows], of_frames[2][rows], atol=2e-5, rtol=0)
    assert (of_frames[1][rows] - of_frames[2][rows]).abs().max() > 1e-2  # not so without them
    others = torch.tensor([1, 2, 11])
    assert (of_frames[0][others] - of_frames[2][others]).abs().max() > 1e-2


def test_plus_takes_the_narrowest_band_that_recalls_enough():
    layout = TokenLayout((9, 12, 20), 9 * 240)
    kinds = [[Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL]]
    q, k, _ = synthetic_heads(layout, kinds, 64)
    plan = reference.classify_heads(q, k, layout.grid, method="rainfusion_plus", sparsity=0.5)
    assert plan.kind.tolist() == kinds
    # A same-place head needs no more than the narrowest band: the mask of 1/8, not that of s = 0.5.
    narrow, of_sparsity = (
        reference.block_mask(layout, Kind.TEMPORAL, band, block_shape(64)).float().mean()
        for band in (125_000, band_of(0.5))
    )
    assert plan.density[0, 1] == pytest.approx(float(narrow), abs=0.02)
    assert plan.density[0, 1] < of_sparsity


@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("case", [*CASES[:4], *EXACT_CASES], ids=str)
def test_rainfusion2_keeps_the_best_blocks(case, sparsity, head_size):
    layout, (q, k, v) = heads(case, [[Kind.TEXTURAL]] * 2, head_size)
    places = (layout.grid, layout.tokens, layout.text, sinks_of(layout))
    count = len(layout.blocks(block_shape(head_size).k))
    assert kept_blocks(sparsity, count) == math.ceil(round(count * (1 - sparsity), 6))
    scale = 1 / math.sqrt(head_size)
    for lengths in ([layout.tokens] * 2, [layout.tokens // 2, 193]):
        arguments = {
            **places_of(layout),
            "sparsity": sparsity,
            "method": "rainfusion2",
            "kv_len": torch.tensor(lengths, dtype=torch.int32),
        }
        out = reference.rainfusion_attention(q, k, v, layout.grid, **arguments)
        plan = reference.classify_heads(q, k, layout.grid, **arguments)
        for b, length in enumerate(lengths):
            query, key, value = (x[b, 0].double().numpy() for x in (q, k, v))
            exact = exact_of(layout)
            mask = brute_force.best_blocks(query, key, sparsity, *places, scale, length, exact)
            result = brute_force.attention(query, key, value, mask, scale)
            np.testing.assert_allclose(out[b, 0, :length], result[:length], atol=2e-5)
            density = mask.sum() / (layout.tokens * length)
            np.testing.assert_allclose(plan.density[b, 0], density, rtol=1e-6)


def test_scale_and_alpha_are_used():
    layout, (q, k, v) = heads(CASES[0], [[Kind.TEXTURAL]])
    flat = reference.rainfusion_attention(q, k, v, layout.grid, sparsity=0.0, scale=1e-9)
    torch.testing.assert_close(flat, v.mean(2, keepdim=True).expand_as(flat), atol=1e-5, rtol=0)
    plan = reference.classify_heads(q, k, layout.grid, alpha=0.0, method="rainfusion")
    assert (plan.kind == Kind.TEMPORAL).all()
