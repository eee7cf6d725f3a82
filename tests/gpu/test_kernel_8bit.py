"""8-bit kernels against ``helpers.whole_scores``, which rounds the same operands, on a GPU.

Both sides have the same integers and e4m3 numbers, but for the few that float32 moves over the edge
of two roundings: exponentials differ by some 1e-4 (the origin of integer scores takes bits from
their references), so that one probability in 600 is rounded the other way, by 6 %, and values and
keys more rarely. That is .003 of the output without the values' mean; sums of 13 bits that are
promoted every 16 tiles add less than .001 where that mean is gone. The bound is .01 and what the
type of the output rounds, a quarter of what the formats themselves cost: a scale, a key or a
permutation that is wrong costs all of it.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from helpers import whole_scores
from helpers.blocks_asked_for import ask_for
from helpers.gpu import skip_without_kernel
from helpers.kernel_choice import kernels_choice, lengths_of
from helpers.layouts import places_of
from helpers.quick import with_a_quick_one
from helpers.rising_scores import GRID, LEVELS, TOKENS, leveled_heads
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator.cuda_ops import launch
from rainfusion_trt.operator.eight_bit import rotated
from rainfusion_trt.operator.geometry import Kind, TokenLayout, block_shape
from rainfusion_trt.operator.piecewise import Windows
from rainfusion_trt.operator.settings import AttentionSettings

pytestmark = pytest.mark.gpu

ROUNDING = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
BOUND = 0.01
HEADS = (2, 3)
CLIPS = {
    "text first": ((9, 17, 25), 226, "first", 1),
    "text last, all axes ragged": ((23, 13, 11), 100, "last", 1),
    "no sink": ((8, 19, 23), 0, "none", 0),
    "one row": ((2, 1, 900), 0, "none", 0),
    "a few tokens": ((3, 2, 3), 5, "last", 1),
    "sinks at both ends": ((11, 17, 25), 226, "last", 1, 1),
    "sinks at the end": ((10, 13, 19), 0, "none", 0, 2),
    "text first, sinks at both ends": ((14, 11, 13), 100, "first", 2, 3),
    "exact frames and sinks": ((14, 13, 19), 100, "last", 1, 2, ((0, 2), (6, 7), (13, 14))),
}


@pytest.fixture(autouse=True, scope="module")
def has_kernels():
    """Hopper's, or the portable one; on Hopper too in a build for 89-virtual (docs/kernels.md)."""
    skip_without_kernel("8bit")


def make(clip, head_size, dtype=torch.float16, seed=0):
    """Heads whose windows' means are no noise, and whose keys and values have much in common."""
    grid, text_tokens, text, *sinks = clip
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    generator = torch.Generator("cuda").manual_seed(seed)
    shape = (3, *HEADS, layout.tokens, head_size)
    x = torch.randn(shape, generator=generator, device="cuda")
    line = torch.linspace(0, 40, layout.tokens, device="cuda")[:, None]
    channel = torch.arange(head_size, device="cuda")
    x += torch.sin(line + channel)
    x[1:] += 3.0 * (channel % 5 == 0)
    return layout, *x.to(dtype).unbind(0)


def arguments_of(layout, sparsity, method="piecewise", kv_len=None):
    return {
        **places_of(layout),
        "method": method,
        "sparsity": sparsity,
        "kv_len": kv_len,
        "precision": "8bit",
    }


def wanted_of(layout, q, k, v, arguments, shape=None):
    """Output and log-sum-exp in 8 bits, with the windows that the kernels chose."""
    plan, chosen = classify_heads(q, k, layout.grid, **arguments), None
    if (plan.kind == Kind.WINDOWS).any():
        windows = Windows(layout, shape or block_shape(q.shape[-1], "8bit"), q.device)
        sparsity, kv_len = arguments["sparsity"], arguments["kv_len"]
        chosen = kernels_choice(layout, windows, q, k, sparsity, kv_len, "8bit")
    wanted = whole_scores.attend(q, k, v, layout.grid, blocks=shape, chosen=chosen, **arguments)
    return wanted.out, wanted.lse


def check(layout, q, k, v, arguments, shape=None):
    out, lse = rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    assert torch.equal(out, rainfusion_attention(q, k, v, layout.grid, **arguments))
    assert out.isfinite().all() and not lse.isnan().any() and not lse.isposinf().any()
    wanted, wanted_lse = wanted_of(layout, q, k, v, arguments, shape)
    for b, length in enumerate(lengths_of(layout, arguments["kv_len"], HEADS[0])):
        if length == 0:
            assert (out[b] == 0).all() and lse[b].isneginf().all()
            continue
        for h in range(q.shape[1]):
            found, expected = out[b, h, :length].float(), wanted[b, h, :length]
            common = v[b, h, :length].float().mean(0)
            most = BOUND * (expected - common).norm() + ROUNDING[q.dtype] * expected.norm()
            error = (found - expected).norm()
            assert error <= most, (b, h, (error / (expected - common).norm()).item())
            check_lse(lse[b, h], wanted_lse[b, h], q[b, h], k[b, h], length)
    return out


def check_lse(lse, wanted, q, k, length, relative=2.0**-20):
    """Sums of exponentials that differ as above; the shift is a product of float32.

    Of a hundred rows one has an integer that float32 moves over the edge of two, by which all
    scores of the row move; more than three such integers no row has.
    """
    off = (lse - wanted)[:length].abs()
    most = 2e-3 + relative * wanted[:length].abs()
    assert (off > most).float().mean() < 0.05, off.quantile(0.95).item()
    head_size = q.shape[1]
    unit = rotated(q[:length]).abs().amax(1) / 127
    keys = rotated(k[:length].float() - k[:length:8].float().mean(0))
    moved = 3 * unit * keys.abs().max() * head_size**-1.5
    assert (off <= most + moved).all(), (off - most - moved).max().item()


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("clip", with_a_quick_one(CLIPS, "sinks at both ends"))
def test_clips(clip, head_size, dtype):
    layout, q, k, v = make(CLIPS[clip], head_size, dtype)
    for method, sparsity in [("piecewise", 0.0), ("piecewise", 0.3), ("piecewise", 0.8)]:
        check(layout, q, k, v, arguments_of(layout, sparsity, method))


@pytest.mark.quick
@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("method", ["rainfusion2", "rainfusion_two_way"])
def test_blocks(method, head_size):
    layout, q, k, v = make(CLIPS["text first"], head_size)
    arguments = arguments_of(layout, 0.0, method)
    check(layout, q, k, v, arguments)
    # Which blocks are best is settled in 16 bits (test_kernels.py); a near one may go either way.
    arguments["sparsity"] = 0.6
    out = rainfusion_attention(q, k, v, layout.grid, **arguments)
    wanted = whole_scores.attend(q, k, v, layout.grid, **arguments).out
    common = v.float().mean(2, keepdim=True)
    errors = (out.float() - wanted).norm(dim=(2, 3))
    errors /= (wanted - common).norm(dim=(2, 3))
    assert errors.median() < 2 * BOUND, errors


@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize(
    "lengths", [(0, 1), (425, 426), (650, 1900), (2100, 3825), (3800, 5000), (4300, 4700)]
)
@pytest.mark.parametrize("clip", ["text first", "text last, all axes ragged", "sinks at both ends"])
def test_kv_len(clip, lengths, head_size):
    """In the text, in the sink frames, in windows; what is behind it is NaN."""
    layout, q, k, v = make(CLIPS[clip], head_size)
    kv_len = torch.tensor([min(x, layout.tokens) for x in lengths], device="cuda").int()
    for b, length in enumerate(kv_len.tolist()):
        for x in (k, v):
            x[b, :, length:] = float("nan")
    for sparsity in (0.0, 0.7):
        arguments = arguments_of(layout, sparsity, kv_len=kv_len)
        check(layout, q, k, v, arguments)


@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("levels", LEVELS)
def test_scores_that_rise(levels, head_size):
    """References move, in steps that float32 survives and that it does not.

    In the latter a warp's 16 rows move together, which the reference does not know: its
    probabilities are others, rounded as well, so that the two differ by what rounding costs twice.
    """
    layout = TokenLayout(GRID, TOKENS, "none", 0)
    q, k, v = leveled_heads(LEVELS[levels], *HEADS, head_size, torch.float16, "cuda")
    arguments = arguments_of(layout, 0.0)
    out, lse = rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    wanted, wanted_lse, _ = whole_scores.attend(q, k, v, layout.grid, **arguments)
    assert out.isfinite().all()
    assert (out.float() - wanted).norm() < 0.06 * wanted.norm()
    for b, h in itertools.product(range(HEADS[0]), range(HEADS[1])):
        check_lse(lse[b, h], wanted_lse[b, h], q[b, h], k[b, h], layout.tokens, 2.0**-12)


@pytest.mark.parametrize("head_size", [64, 128])
def test_long_rows_are_promoted(head_size):
    """Many tiles, sums promoted several times, with values that add up and with heavy keys."""
    layout = TokenLayout((12, 24, 32), 12 * 24 * 32 + 77, "last", 1)
    generator = torch.Generator("cuda").manual_seed(5)
    shape = (3, 1, 2, layout.tokens, head_size)
    q, k, v = torch.randn(shape, generator=generator, device="cuda").unbind(0)
    v += 2.0
    q, k, v = (x.half() for x in (q, 3 * k, v))
    for sparsity in (0.0, 0.5):
        out = rainfusion_attention(q, k, v, layout.grid, **arguments_of(layout, sparsity))
        wanted = whole_scores.attend(q, k, v, layout.grid, **arguments_of(layout, sparsity)).out
        common = v.float().mean(2, keepdim=True)
        error = (out.float() - wanted).norm() - 2.0**-11 * wanted.norm()
        assert error < 2 * BOUND * (wanted - common).norm()


@pytest.mark.parametrize("blocks", [(64, 32), (96, 77), (192, 96)], ids=str)
@pytest.mark.parametrize("head_size", [64, 128])
def test_windows_that_a_problem_asks_for(monkeypatch, blocks, head_size):
    shape = ask_for(monkeypatch, blocks)
    layout, q, k, v = make(CLIPS["text last, all axes ragged"], head_size)
    out = rainfusion_attention(q, k, v, layout.grid, **arguments_of(layout, 0.0))
    arguments = arguments_of(layout, 0.0)
    wanted = whole_scores.attend(q, k, v, layout.grid, blocks=shape, **arguments).out
    common = v.float().mean(2, keepdim=True)
    error = (out.float() - wanted).norm() - 2.0**-11 * wanted.norm()
    assert error < BOUND * (wanted - common).norm()
    check(layout, q, k, v, arguments_of(layout, 0.7), shape=shape)


@pytest.mark.parametrize("grid", [(2, 32, 32), (16, 64, 64)], ids=str)
@pytest.mark.parametrize("head_size", [64, 128])
def test_error_of_the_formats(head_size, grid):
    """The figure that the definition promises, on random normal data, however many keys.

    The more there are, the more a mean counts that rounding leaves values with.
    """
    layout = TokenLayout(grid, math.prod(grid), "none", 0)
    generator = torch.Generator("cuda").manual_seed(1)
    shape = (3, 1, 2, layout.tokens, head_size)
    q, k, v = torch.randn(shape, generator=generator, device="cuda").bfloat16().unbind(0)
    out = rainfusion_attention(q, k, v, layout.grid, **arguments_of(layout, 0.0))
    rows = torch.linspace(0, layout.tokens - 1, 500, device="cuda").long()
    scores = q[:, :, rows].double() @ k.double().transpose(2, 3) * head_size**-0.5
    wanted = torch.softmax(scores, -1) @ v.double()
    error = (out[:, :, rows].double() - wanted).norm() / wanted.norm()
    assert error < 0.038, error.item()


def test_every_element_is_written_and_calls_repeat():
    layout, q, k, v = make(CLIPS["text first"], 128)
    for sparsity in (0.0, 0.8):
        arguments = arguments_of(layout, sparsity)
        wanted = rainfusion_attention(q, k, v, layout.grid, **arguments)
        packed = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, S, 3, N, D]
        views = [packed[:, :, i].transpose(1, 2) for i in range(3)]
        settings = AttentionSettings.of(
            text=layout.text, sink_frames=1, method="piecewise", precision="8bit"
        )
        for _ in range(3):
            out = torch.full_like(q, float("nan"))
            device_sparsity = torch.tensor([sparsity], device="cuda")
            launch("attention", (*views, out), layout.grid, device_sparsity, None, settings)
            assert torch.equal(out, wanted)


def test_heads_do_not_see_each_other():
    layout, q, k, v = make(CLIPS["text first"], 128)
    arguments = arguments_of(layout, 0.8)
    together = rainfusion_attention(q, k, v, layout.grid, **arguments)
    alone = rainfusion_attention(*(x[1:, 2:] for x in (q, k, v)), layout.grid, **arguments)
    assert torch.equal(together[1:, 2:], alone)


def test_nan_in_is_nan_out():
    layout, q, k, v = make(CLIPS["no sink"], 128)
    q[0, 0, 5, 3] = k[0, 1, 7, 2] = float("nan")
    out = rainfusion_attention(q, k, v, layout.grid, **arguments_of(layout, 0.0))
    assert out[0, 0, 5].isnan().all() and out[0, 0, 6].isfinite().all()
    assert out[0, 1].isnan().all() and out[1].isfinite().all()


def test_problems_without_a_kernel_are_refused():
    q = torch.zeros(1, 1, 64, 64, dtype=torch.float16, device="cuda")
    with pytest.raises(UnsupportedError, match="textural"):
        rainfusion_attention(q, q, q, (4, 4, 4), method="rainfusion", precision="8bit")
