"""The log-sum-exp output: against brute force, as an operator, and as ring attention uses it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rainfusion_trt
from helpers import brute_force
from helpers.layouts import places_of, sinks_of
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import METHODS, PLUS_BANDS, Kind, TokenLayout
from rainfusion_trt.testing import synthetic_heads

D = 16
ALPHA = 0.9
ALL_KINDS = [[Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL]]
# Odd frames, short last blocks, text of one token and of more than a block, with and without sinks.
CASES = [
    # grid, text tokens, text, sink frames at the begin and, if there are some, at the end
    ((4, 9, 15), 0, "none", 1),
    ((4, 9, 15), 1, "first", 1),
    ((3, 11, 13), 129, "last", 1),
    ((5, 7, 11), 130, "first", 0),
    ((9, 5, 7), 20, "last", 2),
    ((5, 9, 15), 130, "first", 1, 1),
]
# Scores up to about 70, in float32 sums of 16 products: 70 * 16 * 2^-24 = 7e-5 at the most.
TOLERANCE = 7e-5


def heads(case, seed=0):
    grid, text_tokens, text, *sinks = case
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    return layout, synthetic_heads(layout, ALL_KINDS, D, seed=seed)


def attended(q, k, layout, kind, method, sparsity, scale, kv_len):
    """bool [S, S] of one head, q, k [S, D] float64, from the contract's words alone."""
    places = (layout.grid, layout.tokens, layout.text, sinks_of(layout))
    if kind is Kind.BLOCKS:
        return brute_force.best_blocks(q, k, sparsity, *places, scale, kv_len)
    if method == "rainfusion_plus" and kind in (Kind.TEMPORAL, Kind.SPATIAL):
        for band in PLUS_BANDS:
            sparsity = (1 - band / 1e6) ** 2  # the sparsity that has this band
            recalls = brute_force.recalls(q, k, sparsity, *places, scale)
            if recalls[kind is Kind.SPATIAL] >= ALPHA:
                break
    mask = brute_force.attended(kind.name.lower(), sparsity, *places, q.shape[-1])
    return mask & (np.arange(layout.tokens) < kv_len)


def check(layout, q, k, v, method, sparsity, kv_len=None, scale=None):
    arguments = {
        **places_of(layout),
        "method": method,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "scale": scale,
    }
    out, lse = rainfusion_trt.rainfusion_attention(
        q, k, v, layout.grid, return_lse=True, **arguments
    )
    assert torch.equal(out, rainfusion_trt.rainfusion_attention(q, k, v, layout.grid, **arguments))
    assert lse.dtype == torch.float32 and lse.shape == q.shape[:3] and lse.is_contiguous()
    plan = reference.classify_heads(q, k, layout.grid, **arguments)
    scale = scale or 1 / math.sqrt(D)
    for b, h in np.ndindex(*q.shape[:2]):
        length = layout.tokens if kv_len is None else int(kv_len[b])
        query, key = (x[b, h].double().numpy() for x in (q, k))
        mask = attended(
            query, key, layout, Kind(int(plan.kind[b, h])), method, sparsity, scale, length
        )
        wanted = brute_force.log_sum_exp(query, key, mask, scale)
        np.testing.assert_allclose(lse[b, h].numpy(), wanted, atol=TOLERANCE, rtol=0)
        assert (np.isneginf(wanted) == ~mask.any(1)).all()
        assert (out[b, h][~mask.any(1)] == 0).all()
    return plan, lse


@pytest.mark.parametrize("case", CASES, ids=str)
# Method piecewise, whose rows also attend to means, is in test_piecewise.py.
@pytest.mark.parametrize("method", [method for method in METHODS if method != "piecewise"])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.64])
def test_lse_is_that_of_the_attended_keys(case, method, sparsity):
    layout, (q, k, v) = heads(case)
    check(layout, q, k, v, method, sparsity)


def test_every_kind_is_met():
    layout, (q, k, v) = heads(CASES[0])
    plan, _ = check(layout, q, k, v, "rainfusion", 0.5)
    assert plan.kind.tolist() == ALL_KINDS


# Without rainfusion_plus, whose band brute force finds by recalls that know no kv_len.
@pytest.mark.parametrize("method", ["rainfusion", "rainfusion_two_way", "rainfusion2"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
@pytest.mark.parametrize("length", [0, 1, 127, 191, 193, 300])
def test_keys_past_kv_len_do_not_count(method, sparsity, length):
    layout, (q, k, v) = heads(((4, 9, 15), 30, "last", 1))
    kv_len = torch.tensor([length], dtype=torch.int32)
    _, lse = check(layout, q, k, v, method, sparsity, kv_len)
    assert lse.isneginf().all() if length == 0 else lse.isfinite().all()


@pytest.mark.parametrize("length", [100, 127])
def test_padding_whose_keys_are_all_padding_gets_minus_infinity(length):
    layout, (q, k, v) = heads(((4, 9, 15), 0, "none", 0))
    kv_len = torch.tensor([length], dtype=torch.int32)
    plan, lse = check(layout, q, k, v, "rainfusion_two_way", 0.8, kv_len)
    assert lse[:, :, :length].isfinite().all()  # a row that is no padding attends to itself
    last = lse[plan.kind == Kind.SPATIAL][:, -1]
    assert last.numel() > 0 and last.isneginf().all()


def test_scale_is_used():
    layout, (q, k, v) = heads(CASES[0])
    check(layout, q, k, v, "rainfusion", 0.0, scale=0.02)
    tiny = check(layout, q, k, v, "rainfusion", 0.0, scale=1e-9)[1]
    torch.testing.assert_close(tiny, torch.full_like(tiny, math.log(layout.tokens)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lse_is_float32_for_every_dtype(dtype):
    layout, qkv = heads(CASES[1])
    q, k, v = (x.to(dtype) for x in qkv)
    arguments = {"text": layout.text, "method": "rainfusion", "return_lse": True}
    out, lse = rainfusion_trt.rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert out.dtype == dtype
    wide = rainfusion_trt.rainfusion_attention(
        q.float(), k.float(), v.float(), layout.grid, **arguments
    )
    assert torch.equal(lse, wide[1])


@pytest.mark.parametrize(("text", "text_tokens"), [("none", 0), ("first", 6), ("last", 6)])
def test_ring_attention_over_parts_of_the_keys_is_dense_attention(text, text_tokens):
    """Each of two ranks holds half of the tokens, and meets the keys of both."""
    grid, half = (4, 5, 9), (2, 5, 9)
    tokens = math.prod(grid) + text_tokens
    q, k, v = torch.randn(3, 2, 2, tokens, D).unbind(0)
    full = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    scores = q @ k.transpose(2, 3) / math.sqrt(D)
    halves = [x.chunk(2, dim=2) for x in (q, k, v)]
    for rank, query in enumerate(halves[0]):
        parts = [
            rainfusion_trt.rainfusion_attention(
                query, key, value, half, text=text, sparsity=0.0, return_lse=True
            )
            for key, value in zip(*halves[1:], strict=True)
        ]
        outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
        total = lses.logsumexp(0)
        combined = ((lses - total).exp()[..., None] * outs).sum(0)
        torch.testing.assert_close(combined, full.chunk(2, dim=2)[rank], atol=2e-6, rtol=0)
        wanted = scores.chunk(2, dim=2)[rank].logsumexp(-1)
        torch.testing.assert_close(total, wanted, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "none"}, "44 more than"),
        ({"method": "flash"}, "flash"),
        ({"sparsity": torch.tensor([1.5])}, r"sparsity=1\.5"),
        ({"kv_len": torch.tensor([300])}, "int32"),
    ],
)
def test_bad_arguments_are_named(arguments, words):
    q, k, v = torch.randn(3, 1, 2, 300, D).unbind(0)
    with pytest.raises(InvalidInputError, match=words):
        rainfusion_trt.rainfusion_attention(
            q, k, v, (4, 8, 8), return_lse=True, **{"text": "first", **arguments}
        )


@pytest.mark.parametrize("kv_len", [None, torch.tensor([300, 17], dtype=torch.int32)])
def test_operator_is_well_registered(kv_len):
    q, k, v = torch.randn(3, 2, 2, 300, D).unbind(0)
    grid, sparsity = q.new_empty(4, 8, 8), torch.tensor([0.5])
    torch.library.opcheck(
        torch.ops.rainfusion.attention_lse.default,
        (q, k, v, grid, sparsity, kv_len, "first", "rainfusion", 0.9, 1, 0.0, "16bit", 0, []),
        test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


def test_strided_queries_give_the_strides_that_the_fake_says():
    q, k, v = (x.transpose(1, 2) for x in torch.randn(3, 2, 300, 2, D).unbind(0))
    grid, sparsity = q.new_empty(4, 8, 8), torch.tensor([0.5])
    torch.library.opcheck(
        torch.ops.rainfusion.attention_lse.default,
        (q, k, v, grid, sparsity, None, "first", "rainfusion", 0.9, 1, 0.0, "16bit", 0, []),
        test_utils=("test_schema", "test_faketensor"),
    )
