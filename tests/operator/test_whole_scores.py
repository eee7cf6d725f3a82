"""What the tests on a GPU compare with, against the reference: they go by other ways to one end."""

from __future__ import annotations

import math

import pytest
import torch

from helpers import whole_scores
from helpers.layouts import places_of
from helpers.rising_scores import GRID, LEVELS, TOKENS, leveled_heads
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import METHODS, BlockShape, Kind, TokenLayout
from rainfusion_trt.operator.piecewise import Windows
from rainfusion_trt.testing import synthetic_heads

pytestmark = pytest.mark.usefixtures("one_thread")

MIXED = [[Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL]] * 2
CASES = {
    "text first, a sink": ((5, 8, 13), 130, "first", 1),
    "no sink": ((4, 11, 13), 0, "none", 0),
    "sinks at both ends": ((8, 8, 9), 20, "last", 1, 2),
    "exact frames": ((9, 8, 9), 77, "last", 1, 0, ((3, 4), (6, 8))),
    "one frame that is no sink": ((2, 9, 15), 20, "last", 1),
}


def make(case, head_size, dtype=torch.float32):
    grid, text_tokens, text, *sinks = CASES[case]
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    return layout, *synthetic_heads(layout, MIXED, head_size, dtype=dtype)


def calls(layout):
    """Sparsity and kv_len: all rows, then a clip beside one that ends in a block, or is empty."""
    short, none = (
        torch.tensor([layout.tokens, length], dtype=torch.int32)
        for length in (layout.tokens * 2 // 3, 0)
    )
    return [(0.0, None), (0.4, None), (0.8, short), (0.6, none)]


def both(layout, q, k, v, blocks=None, **arguments):
    wanted = whole_scores.attend(q, k, v, layout.grid, blocks=blocks, **arguments)
    out, lse = reference.rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    plan = reference.classify_heads(q, k, layout.grid, **arguments)
    for found, expected in zip(wanted.plan, plan, strict=True):
        assert torch.equal(found.nan_to_num(nan=-1.0), expected.nan_to_num(nan=-1.0))
    return wanted, out, lse


def rows_of(x, kv_len):
    """Rows of tokens: what the others hold is nobody's."""
    if kv_len is None:
        return x
    real = torch.arange(x.shape[2]) < kv_len[:, None]
    return x.transpose(1, 2)[real]


def assert_close(layout, found, expected):
    """Sums of at most S numbers of float32, whose order differs."""
    error = layout.tokens * 2.0**-24
    torch.testing.assert_close(found, expected, rtol=error, atol=error)


WITHOUT_TEXTURAL_HEADS = ("rainfusion_two_way", "rainfusion2", "piecewise")


def methods_of(case):
    """Exact frames and 8 bits have no kernel for textural heads."""
    return WITHOUT_TEXTURAL_HEADS if len(CASES[case]) > 5 else METHODS


@pytest.mark.parametrize(("case", "method"), [(c, m) for c in CASES for m in methods_of(c)])
def test_every_method(case, method):
    layout, q, k, v = make(case, 64)
    for sparsity, kv_len in calls(layout):
        arguments = {**places_of(layout), "method": method, "sparsity": sparsity}
        wanted, out, lse = both(layout, q, k, v, kv_len=kv_len, **arguments)
        assert_close(layout, rows_of(wanted.out, kv_len), rows_of(out, kv_len))
        assert_close(layout, rows_of(wanted.lse, kv_len), rows_of(lse, kv_len))


@pytest.mark.parametrize("method", METHODS)
def test_padding_may_be_nan(method):
    layout, q, k, v = make("text first, a sink", 64)
    kv_len = torch.tensor([layout.tokens, layout.tokens - 150], dtype=torch.int32)
    arguments = {**places_of(layout), "method": method, "sparsity": 0.6, "kv_len": kv_len}
    wanted = whole_scores.attend(q, k, v, layout.grid, **arguments)
    for x in (q, k, v):
        x[1, :, layout.tokens - 150 :] = float("nan")
    found = whole_scores.attend(q, k, v, layout.grid, **arguments)
    assert torch.equal(rows_of(found.out, kv_len), rows_of(wanted.out, kv_len))


@pytest.mark.parametrize("blocks", [(64, 32), (96, 77), (256, 128)], ids=str)
def test_blocks_that_a_problem_asks_for(monkeypatch, blocks):
    shape = BlockShape(*blocks)
    monkeypatch.setattr(reference, "block_shape", lambda *_: shape)
    layout, q, k, v = make("sinks at both ends", 96)
    for method in METHODS:
        arguments = {**places_of(layout), "method": method, "sparsity": 0.7}
        wanted, out, lse = both(layout, q, k, v, blocks=shape, **arguments)
        assert_close(layout, wanted.out, out)
        assert_close(layout, wanted.lse, lse)


def test_windows_that_kernels_chose(monkeypatch):
    """None of them is what the rule would choose, and means of bfloat16 are rounded."""
    layout, q, k, v = make("sinks at both ends", 64, torch.bfloat16)
    windows = Windows(layout, reference.block_shape(64), q.device)
    generator = torch.Generator().manual_seed(1)
    size = (2, 3, windows.q_cut.windows, windows.k_cut.windows)
    chosen = torch.rand(size, generator=generator) < 0.4
    arguments = {**places_of(layout), "method": "piecewise", "sparsity": 0.5}
    wanted = whole_scores.attend(q, k, v, layout.grid, chosen=chosen, **arguments)
    choices = list(chosen.flatten(0, 1))
    monkeypatch.setattr(Windows, "choose", lambda *_: choices.pop(0))
    out, lse = reference.rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    assert_close(layout, wanted.lse, lse)
    error = layout.tokens * 2.0**-24  # beside the rounding of the reference's output
    torch.testing.assert_close(wanted.out, out.float(), rtol=2.0**-8, atol=error)


@pytest.mark.parametrize("case", ["text first, a sink", "no sink", "exact frames"])
@pytest.mark.parametrize("method", WITHOUT_TEXTURAL_HEADS)
def test_eight_bits(method, case):
    """What float32 moves over the edge of two roundings is a tenth of what they cost, or less."""
    layout, *heads = make(case, 64)
    q, k, v = (x[:, 1:] for x in heads)
    v += 1.0
    for sparsity, kv_len in calls(layout)[::2]:
        arguments = {**places_of(layout), "method": method, "sparsity": sparsity}
        arguments |= {"precision": "8bit", "kv_len": kv_len}
        wanted, out, lse = both(layout, q, k, v, **arguments)
        exact = whole_scores.attend(q, k, v, layout.grid, **{**arguments, "precision": "16bit"})
        found, expected, without = (rows_of(x, kv_len) for x in (wanted.out, out, exact.out))
        assert (found - expected).norm() < 0.1 * (expected - without).norm()
        assert_close(layout, rows_of(wanted.lse, kv_len), rows_of(lse, kv_len))


@pytest.mark.parametrize("blocks", [(64, 32), (96, 77)], ids=str)
def test_eight_bits_in_blocks_that_a_problem_asks_for(monkeypatch, blocks):
    """The first has more windows than a tile of pseudo-keys."""
    shape = BlockShape(*blocks)
    monkeypatch.setattr(reference, "block_shape", lambda *_: shape)
    layout, *heads = make("exact frames", 64)
    q, k, v = (x[:, 1:] for x in heads)
    arguments = {**places_of(layout), "sparsity": 0.7, "method": "piecewise", "precision": "8bit"}
    wanted, out, lse = both(layout, q, k, v, blocks=shape, **arguments)
    assert (wanted.out - out).norm() < 1e-3 * out.norm()
    assert_close(layout, wanted.lse, lse)


@pytest.mark.parametrize("levels", ["rise (12.0, 50)", "rise (200.0, 300)", "spike 300.0"])
def test_eight_bits_of_scores_that_rise(levels):
    """The references of rows move, each in a tile of its own."""
    layout = TokenLayout(GRID, TOKENS, "none", 0)
    q, k, v = leveled_heads(LEVELS[levels], 1, 1, 64, torch.float32, "cpu")
    arguments = {**places_of(layout), "sparsity": 0.0, "method": "piecewise", "precision": "8bit"}
    wanted, out, lse = both(layout, q, k, v, **arguments)
    assert (wanted.out - out).norm() < 1e-3 * out.norm()
    assert_close(layout, wanted.lse, lse)
