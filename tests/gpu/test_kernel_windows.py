"""Method piecewise on a GPU: the choice of windows and the attention that follows, apart.

Two scores that differ by less than float32 rounds may be chosen either way, and a window more or
less is seen in the output. So the choice is held against the reference's scores, and the attention
against ``helpers.whole_scores``, which is told what the kernels chose. Tolerances as in
test_kernels.py and test_kernel_lse.py; the means that stand for windows are rounded by both sides.
"""

from __future__ import annotations

import math

import pytest
import torch

from helpers import whole_scores
from helpers.blocks_asked_for import ask_for
from helpers.kernel_choice import check_choice, kernels_choice, lengths_of
from helpers.layouts import places_of
from helpers.quick import with_a_quick_one
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.operator.geometry import Kind, TokenLayout, block_shape, kept_blocks
from rainfusion_trt.operator.piecewise import Windows

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
HEADS = (2, 3)
CLIPS = {
    "text first": ((9, 17, 25), 226, "first", 1),
    "text last, all axes ragged": ((23, 13, 11), 100, "last", 1),
    "no sink": ((8, 19, 23), 0, "none", 0),
    "one column": ((30, 97, 1), 20, "last", 2),
    "one row": ((2, 1, 900), 0, "none", 0),
    "two frames": ((3, 45, 31), 3, "first", 1),
    "sinks at both ends": ((11, 17, 25), 226, "last", 1, 1),
    "no text, said to be first": ((9, 17, 25), 0, "first", 1),
    "sinks at the end": ((10, 13, 19), 0, "none", 0, 2),
    "text first, sinks at both ends": ((14, 11, 13), 100, "first", 2, 3),
    "exact frames": ((12, 17, 25), 226, "first", 1, 0, ((5, 6), (9, 11))),
    "exact frames and sinks": ((14, 13, 19), 100, "last", 1, 2, ((0, 2), (6, 7), (13, 14))),
}


def make(clip, head_size, dtype, seed=0):
    grid, text_tokens, text, *sinks = clip
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, *sinks)
    generator = torch.Generator("cuda").manual_seed(seed)

    def smooth():
        """Heads whose means over windows are no noise: their scores spread."""
        shape = (3, *HEADS, layout.tokens, head_size)
        x = torch.randn(shape, generator=generator, device="cuda")
        line = torch.linspace(0, 40, layout.tokens, device="cuda")[:, None]
        wave = torch.sin(line + torch.arange(head_size, device="cuda"))
        return (x + wave).to(dtype).unbind(0)

    return layout, *smooth()


def arguments_of(layout, sparsity, kv_len=None):
    return {
        **places_of(layout),
        "method": "piecewise",
        "sparsity": sparsity,
        "kv_len": kv_len,
    }


def check(layout, shape, q, k, v, sparsity, kv_len=None):
    """The choice, then output, log-sum-exp and plan against float32 with the kernels' choice."""
    chosen = check_choice(layout, shape, q, k, sparsity, kv_len)
    arguments = arguments_of(layout, sparsity, kv_len)
    out, lse = rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    plan = classify_heads(q, k, layout.grid, **arguments)
    wanted = whole_scores.attend(q, k, v, layout.grid, blocks=shape, chosen=chosen, **arguments)
    assert (plan.kind == Kind.WINDOWS).all() and torch.equal(plan.kind, wanted.plan.kind)
    for name in ("density", "work"):
        torch.testing.assert_close(
            getattr(plan, name), getattr(wanted.plan, name), rtol=1e-6, atol=0
        )
    compare(layout, q, k, (out, lse), (wanted.out, wanted.lse), kv_len)
    return out


def compare(layout, q, k, outputs, wanted_outputs, kv_len=None):
    (out, lse), (wanted, wanted_lse) = outputs, wanted_outputs
    assert not lse.isnan().any() and not lse.isposinf().any()
    lengths = torch.tensor(lengths_of(layout, kv_len, HEADS[0]), device=q.device)
    empty = lengths == 0
    assert (out[empty] == 0).all() and lse[empty].isneginf().all()
    padding = (torch.arange(layout.tokens, device=q.device) >= lengths[:, None])[:, None]
    found, expected = (x.float().masked_fill(padding[..., None], 0.0) for x in (out, wanted))
    error = (found - expected).norm(dim=(2, 3)) / expected.norm(dim=(2, 3))
    assert (error < TOLERANCE[q.dtype])[~empty].all(), error
    head_size = q.shape[-1]
    q_norms, k_norms = (x.float().norm(dim=-1).masked_fill(padding, 0.0) for x in (q, k))
    products = head_size**-0.5 * q_norms * k_norms.amax(2, keepdim=True)
    bound = head_size * 2.0**-22 * products + layout.tokens * 2.0**-23
    off = ((lse - wanted_lse).abs() / bound).masked_fill(padding, 0.0)
    assert off.max() <= 1, off.amax(2)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("clip", with_a_quick_one(CLIPS, "sinks at both ends"))
def test_clips(clip, head_size, dtype):
    layout, q, k, v = make(CLIPS[clip], head_size, dtype)
    shape = block_shape(head_size)
    for sparsity in (0.3, 0.8):
        check(layout, shape, q, k, v, sparsity)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.64, 0.9, 0.99, 1.0])
def test_sparsities(sparsity):
    layout, q, k, v = make(CLIPS["text first"], 128, torch.bfloat16)
    check(layout, block_shape(128), q, k, v, min(sparsity, 1 - 2**-24))


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize(
    "lengths", [(0, 1), (425, 426), (650, 1900), (2100, 3825), (3800, 5000), (4300, 4700)]
)
@pytest.mark.parametrize(
    "clip",
    [
        "text first",
        "text last, all axes ragged",
        "sinks at both ends",
        "exact frames",
        "exact frames and sinks",
    ],
)
def test_kv_len(clip, lengths, head_size):
    """In the text, in the sink frames, in windows; what is behind it is NaN."""
    layout, q, k, v = make(CLIPS[clip], head_size, torch.bfloat16)
    kv_len = torch.tensor([min(x, layout.tokens) for x in lengths], device="cuda").int()
    for b, length in enumerate(kv_len.tolist()):
        for x in (k, v):
            x[b, :, length:] = float("nan")
    out = check(layout, block_shape(head_size), q, k, v, 0.7, kv_len)
    assert out.isfinite().all()


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize(
    "blocks", [(64, 32), (96, 77), (256, 128), (384, 200), (192, 300)], ids=str
)
def test_windows_that_a_problem_asks_for(monkeypatch, blocks, head_size):
    shape = ask_for(monkeypatch, blocks)
    layout, q, k, v = make(CLIPS["text last, all axes ragged"], head_size, torch.bfloat16)
    check(layout, shape, q, k, v, 0.7)


@pytest.mark.parametrize("block_k", [1, 2, 4, 8])
def test_more_windows_than_shared_memory_has_room_for(monkeypatch, block_k):
    """The choice takes 2, 4, 8 and 16 query windows at a time."""
    shape = ask_for(monkeypatch, (64, block_k))
    layout, q, k, _ = make(((8, 32, 32), 0, "none", 0), 64, torch.bfloat16)
    windows = Windows(layout, shape, q.device)
    chosen = check_choice(layout, shape, q, k, 0.9)
    assert chosen.sum(-1).min() >= kept_blocks(0.9, windows.k_cut.windows)


@pytest.mark.parametrize("sparsity", [0.3, 0.8, 0.95])
def test_of_equal_scores_the_first_wins(sparsity):
    layout, q, k, _ = make(CLIPS["no sink"], 64, torch.float16)
    k.zero_()
    windows = Windows(layout, block_shape(64), q.device)
    chosen = kernels_choice(layout, windows, q, k, sparsity)
    first = torch.arange(windows.k_cut.windows, device="cuda")
    first = first < kept_blocks(sparsity, windows.k_cut.windows)
    wanted = windows.choose(q[0, 0], k[0, 0], sparsity, 0.125, layout.tokens)
    assert torch.equal(chosen, wanted.expand_as(chosen))
    assert chosen[..., first].all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("short", [False, True])
def test_windows_of_equal_keys_make_dense_attention(short, clip, head_size, dtype):
    """One key that weighs as much as its window's keys is exact if they are equal."""
    layout, q, k, v = make(CLIPS[clip], head_size, dtype)
    window_of = Windows(layout, block_shape(head_size), q.device).k_cut.window_of("cuda")
    free = window_of >= 0
    for x in (k, v):
        x[:, :, free] = x[:, :, free][:, :, window_of[free]].clone()
    kv_len = None
    if short:
        lengths = [layout.tokens * 2 // 3, layout.tokens - 7]
        kv_len = torch.tensor(lengths, device="cuda").int()
    out, lse, _ = whole_scores.attend(q, k, v, layout.grid, **arguments_of(layout, 0.0, kv_len))
    for sparsity in (0.8, 0.99):
        sparse = rainfusion_attention(
            q, k, v, layout.grid, return_lse=True, **arguments_of(layout, sparsity, kv_len)
        )
        compare(layout, q, k, sparse, (out, lse), kv_len)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("lengths", [None, (0, 700), (3000, 4051)])
def test_dense_calls(head_size, lengths):
    """At s = 0, and where there are fewer than two key windows, whatever s is."""
    kv_len = None if lengths is None else torch.tensor(lengths, device="cuda").int()
    few = ((2, 3, 5), 40, "last", 0)
    for clip, sparsity in ((CLIPS["text first"], 0.0), (few, 0.8)):
        layout, q, k, v = make(clip, head_size, torch.bfloat16)
        length = None if kv_len is None else kv_len.clamp(max=layout.tokens)
        arguments = arguments_of(layout, sparsity, length)
        plan = classify_heads(q, k, layout.grid, **arguments)
        assert (plan.kind == Kind.DENSE).all()
        outputs = rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
        out, lse, _ = whole_scores.attend(q, k, v, layout.grid, **arguments)
        compare(layout, q, k, outputs, (out, lse), length)


def test_strided_views_are_read_in_place():
    layout, q, k, v = make(CLIPS["no sink"], 64, torch.bfloat16)
    arguments = arguments_of(layout, 0.8)
    wanted = rainfusion_attention(q, k, v, layout.grid, **arguments)
    packed = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, S, 3, N, D]
    views = [packed[:, :, i].transpose(1, 2) for i in range(3)]
    assert torch.equal(rainfusion_attention(*views, layout.grid, **arguments), wanted)


def test_heads_do_not_see_each_other():
    layout, q, k, v = make(CLIPS["text first"], 128, torch.bfloat16)
    arguments = arguments_of(layout, 0.8)
    together = rainfusion_attention(q, k, v, layout.grid, **arguments)
    alone = rainfusion_attention(*(x[1:, 2:] for x in (q, k, v)), layout.grid, **arguments)
    assert torch.equal(together[1:, 2:], alone)
