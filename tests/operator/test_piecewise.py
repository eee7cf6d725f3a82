"""Method piecewise: the reference against a loop over tokens, and what follows from the rules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import rainfusion_trt
from helpers import brute_windows
from helpers.brute_force import QUERY_BLOCK, key_block
from helpers.layouts import exact_of, places_of, sinks_of
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import Kind, TokenLayout
from rainfusion_trt.operator.windows import WindowCut

D = 16
# Ragged at every edge; one row, one column; two free frames; text of one token, of less and more
# than a run; no sinks; more frames than a window has; sinks at the end, with and without text;
# exact frames, between sinks, side by side with them and among them.
CASES = [
    # grid, text tokens, text, sink frames at the begin and, if there are some, at the end, and
    # exact frames
    ((4, 9, 15), 0, "none", 1),
    ((4, 9, 15), 1, "first", 1),
    ((7, 1, 41), 30, "last", 1),
    ((6, 53, 1), 129, "first", 0),
    ((3, 13, 17), 193, "last", 1),
    ((21, 3, 5), 20, "last", 2),
    ((2, 11, 13), 0, "none", 0),
    ((5, 9, 15), 30, "last", 1, 1),
    ((7, 8, 11), 129, "first", 0, 3),
    ((4, 13, 17), 0, "none", 1, 1),
    ((9, 9, 11), 0, "none", 1, 0, ((4, 5),)),
    ((11, 5, 17), 30, "first", 1, 1, ((0, 2), (5, 6), (10, 11))),
    ((10, 7, 13), 129, "last", 0, 2, ((3, 5), (9, 10))),
]
# Head sizes of each block shape.
HEAD_SIZES = [D, 96, 128]
# Sums of 16 to 128 products of unit scale in float32, softmax of at most a thousand of them: with
# scores below 8, 8 * 16 * 2^-24 = 8e-6 of the score and as much of the output.
TOLERANCE = 2e-5


def draw(case, head_size=D, dtype=torch.float32, batch=1, heads=2, seed=0):
    grid, text_tokens, text, *sinks = case
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    generator = torch.Generator().manual_seed(seed)
    shape = (3, batch, heads, layout.tokens, head_size)
    return layout, torch.randn(shape, generator=generator).to(dtype).unbind(0)


def arguments_of(layout, **others):
    return {
        "method": "piecewise",
        **places_of(layout),
        **others,
    }


def check(layout, q, k, v, sparsity, kv_len=None, scale=None, tolerance=TOLERANCE):
    """Output, log-sum-exp, kind, density and work of every head against brute force."""
    arguments = arguments_of(layout, sparsity=sparsity, kv_len=kv_len, scale=scale)
    out, lse = rainfusion_trt.rainfusion_attention(
        q, k, v, layout.grid, return_lse=True, **arguments
    )
    plan = rainfusion_trt.classify_heads(q, k, layout.grid, **arguments)
    head_size = q.shape[-1]
    scale = scale or 1 / math.sqrt(head_size)
    tile = QUERY_BLOCK * key_block(head_size)
    assert (plan.kind == Kind.WINDOWS).all()
    assert plan.recall_spatial.isnan().all() and plan.recall_temporal.isnan().all()

    def round_to(x):
        return torch.from_numpy(x).to(q.dtype).double().numpy()

    for b, h in np.ndindex(*q.shape[:2]):
        length = layout.tokens if kv_len is None else int(kv_len[b])
        wanted = brute_windows.piecewise(
            *(x[b, h].double().numpy() for x in (q, k, v)),
            sparsity,
            layout.grid,
            layout.tokens,
            layout.text,
            sinks_of(layout),
            scale,
            length,
            round_to,
            exact_of(layout),
        )
        rows = slice(0, length)  # the rows behind hold nothing of meaning
        np.testing.assert_allclose(out[b, h, rows].double(), wanted[0][rows], atol=tolerance)
        np.testing.assert_allclose(lse[b, h, rows].double(), wanted[1][rows], atol=TOLERANCE)
        all_pairs = max(1, layout.tokens * length)
        np.testing.assert_allclose(plan.density[b, h], wanted[2] / all_pairs, rtol=1e-6)
        np.testing.assert_allclose(plan.work[b, h], wanted[3] * tile / all_pairs, rtol=1e-6)
    return out, lse, plan


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("head_size", HEAD_SIZES)
@pytest.mark.parametrize("sparsity", [0.3, 0.8])
def test_matches_brute_force(case, head_size, sparsity):
    layout, qkv = draw(case, head_size)
    check(layout, *qkv, sparsity)


@pytest.mark.parametrize("case", [CASES[2], CASES[4]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_means_are_rounded_to_the_tensors_type(case, dtype):
    layout, qkv = draw(case, dtype=dtype)
    # The output is rounded too: half of the last place of numbers below 1, with some below 2.
    check(layout, *qkv, 0.8, tolerance=max(TOLERANCE, torch.finfo(dtype).eps))


# Inside the leading text, at its end, inside a sink frame, inside windows, and nothing at all.
@pytest.mark.parametrize(("text", "last"), [("first", 0), ("last", 0), ("last", 1)])
@pytest.mark.parametrize("length", [0, 1, 29, 30, 100, 170, 300, 431, 569, 570])
def test_kv_len_may_end_anywhere(text, last, length):
    exact = ((2, 3),) if (text, last) == ("last", 0) else ()
    layout, qkv = draw(((4, 9, 15), 30, text, 1, last, exact), batch=2, heads=1)
    kv_len = torch.tensor([length, layout.tokens], dtype=torch.int32)
    out, lse, _ = check(layout, *qkv, 0.7, kv_len)
    assert out.isfinite().all()
    if length == 0:
        assert lse[0].isneginf().all() and (out[0] == 0).all()


@pytest.mark.parametrize("text", ["first", "last"])
def test_what_lies_past_kv_len_is_never_read(text):
    layout, (q, k, v) = draw(((4, 9, 15), 30, text, 1), heads=1)
    length = 333
    arguments = arguments_of(
        layout, sparsity=0.7, kv_len=torch.tensor([length], dtype=torch.int32), return_lse=True
    )
    out, lse = rainfusion_trt.rainfusion_attention(q, k, v, layout.grid, **arguments)
    for x in (k, v):
        x[:, :, length:] = math.nan
    q[:, :, length:] = 1e4
    again = rainfusion_trt.rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert torch.equal(out[:, :, :length], again[0][:, :, :length])
    assert torch.equal(lse[:, :, :length], again[1][:, :, :length])
    assert again[0].isfinite().all()


def test_scale_is_used():
    layout, (q, k, v) = draw(CASES[0])
    check(layout, q, k, v, 0.8, scale=0.02)


def test_a_window_of_equal_keys_is_exact_by_its_mean():
    """A pseudo-key weighs as its tokens: attention is dense attention, at any sparsity."""
    layout, (q, k, v) = draw(((6, 13, 17), 20, "first", 1))
    window_of = WindowCut(layout, key_block(D)).window_of()
    free = window_of >= 0
    for x in (k, v):
        x[:, :, free] = x[:, :, : window_of.max() + 1][:, :, window_of[free]]
    arguments = arguments_of(layout, return_lse=True)
    out, lse = reference.rainfusion_attention(q, k, v, layout.grid, sparsity=0.95, **arguments)
    plan = reference.classify_heads(q, k, layout.grid, sparsity=0.95, **arguments_of(layout))
    assert (plan.density < 0.9).all()  # so that some windows are means
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, wanted, atol=TOLERANCE, rtol=0)
    total = (q @ k.transpose(2, 3) / math.sqrt(D)).logsumexp(-1)
    torch.testing.assert_close(lse, total, atol=TOLERANCE, rtol=0)


def test_batch_elements_and_heads_are_computed_by_themselves():
    layout, qkv = draw(CASES[3], batch=2, heads=3)
    lengths = torch.tensor([layout.tokens, 200], dtype=torch.int32)
    arguments = arguments_of(layout, sparsity=0.8)
    out = reference.rainfusion_attention(*qkv, layout.grid, kv_len=lengths, **arguments)
    b, h = torch.tensor([1, 0]), torch.tensor([2, 0, 1])
    moved = [x[b][:, h].contiguous() for x in qkv]
    again = reference.rainfusion_attention(*moved, layout.grid, kv_len=lengths[b], **arguments)
    assert torch.equal(again, out[b][:, h])


def test_equal_scores_keep_the_lower_windows():
    layout, (q, k, v) = draw(((3, 16, 32), 0, "none", 1), heads=1)
    k[:] = 0.0
    sparsity = 0.8
    _, lse, _ = check(layout, q, k, v, sparsity)  # brute force takes the lower number
    # All scores are 0, so that every row counts all keys whatever is kept.
    torch.testing.assert_close(lse, torch.full_like(lse, math.log(layout.tokens)))


@pytest.mark.parametrize(
    ("grid", "sinks", "kind"),
    [
        ((5, 4, 8), (1, 0), Kind.DENSE),  # 128 tokens: one key window
        ((5, 4, 9), (1, 0), Kind.WINDOWS),
        ((2, 16, 16), (1, 0), Kind.DENSE),  # one free frame
        ((18, 1, 4), (1, 0), Kind.WINDOWS),  # 68 tokens, but no window has 17 frames
        ((1, 16, 16), (3, 0), Kind.DENSE),
        ((6, 4, 8), (1, 1), Kind.DENSE),
        ((3, 16, 16), (1, 1), Kind.DENSE),
        ((4, 16, 16), (1, 1), Kind.WINDOWS),
        ((3, 16, 16), (2, 9), Kind.DENSE),  # sinks that overlap
    ],
)
def test_one_key_window_or_one_frame_is_dense(grid, sinks, kind):
    layout, (q, k, v) = draw((grid, 7, "last", *sinks))
    arguments = arguments_of(layout, sparsity=0.8)
    plan = reference.classify_heads(q, k, grid, **arguments)
    assert (plan.kind == kind).all()
    out = reference.rainfusion_attention(q, k, v, grid, **arguments)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    if kind is Kind.DENSE:
        assert (plan.density == 1).all()
        torch.testing.assert_close(out, dense, atol=TOLERANCE, rtol=0)


def test_gradient_goes_through_the_means():
    layout, qkv = draw(CASES[0], dtype=torch.float64, heads=1)
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = rainfusion_trt.rainfusion_attention(
        *leaves, layout.grid, **arguments_of(layout, sparsity=0.8)
    )
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    gradients = torch.autograd.grad((out * weights).sum(), leaves)
    # Along a direction, against a difference of the outputs; float32 inside limits the step.
    generator = torch.Generator().manual_seed(1)
    for i in range(3):
        direction = torch.randn(qkv[i].shape, generator=generator, dtype=torch.float64)
        step = 1e-3
        ends = []
        for sign in (1, -1):
            moved = [x + sign * step * direction if j == i else x for j, x in enumerate(qkv)]
            result = reference.rainfusion_attention(
                *moved, layout.grid, **arguments_of(layout, sparsity=0.8)
            )
            ends.append((result * weights).sum())
        slope = (ends[0] - ends[1]) / (2 * step)
        actual = (gradients[i] * direction).sum()
        torch.testing.assert_close(actual, slope, rtol=2e-2, atol=1e-2)


def test_no_sparsity_has_the_dense_gradient():
    layout, qkv = draw(CASES[1], dtype=torch.float64, heads=1)
    leaves = [x.clone().requires_grad_() for x in qkv]
    out = rainfusion_trt.rainfusion_attention(
        *leaves, layout.grid, **arguments_of(layout, sparsity=0.0)
    )
    wanted = torch.nn.functional.scaled_dot_product_attention(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    actual, right = (torch.autograd.grad((x * weights).sum(), leaves) for x in (out, wanted))
    for a, b in zip(actual, right, strict=True):
        torch.testing.assert_close(a, b)
