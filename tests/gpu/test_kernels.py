"""The kernels against the operator in float32 (``helpers.whole_scores``), on a GPU.

Tolerances: inputs are rounded to the dtype before both sides see them, so what differs is the
rounding of the probabilities and of the output to 16 bit: relative error of the whole output
about 2^-8 / sqrt(3) in bfloat16 and 2^-11 / sqrt(3) in float16, each twice; the bounds below leave
a factor of two or more.
"""

from __future__ import annotations

import math

import pytest
import torch

from helpers import whole_scores
from helpers.blocks_asked_for import ask_for
from helpers.kernel_choice import check_choice
from helpers.layouts import places_of
from helpers.rising_scores import GRID, LEVELS, SHORT, TOKENS, leveled_heads
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.geometry import METHODS, Kind, TokenLayout, block_shape
from rainfusion_trt.testing import synthetic_heads

pytestmark = pytest.mark.gpu

TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1e-2}
RECALL_MARGIN = 2e-3  # kinds may differ where a recall is this near its threshold
MIXED = [
    [Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL],
    [Kind.TEXTURAL, Kind.SPATIAL, Kind.TEMPORAL],
]


def relative_error(out, wanted):
    out, wanted = out.float(), wanted.float()
    assert out.isfinite().all()
    return ((out - wanted).norm() / wanted.norm()).item()


def make(
    grid, text_tokens, text, sink_frames, head_size, dtype, kinds=MIXED, seed=0, last=0, exact=()
):
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, sink_frames, last, exact)
    q, k, v = synthetic_heads(layout, kinds, head_size, dtype=dtype, device="cuda", seed=seed)
    return layout, q, k, v


def check(layout, q, k, v, method="rainfusion", blocks=None, **arguments):
    arguments = {**places_of(layout), "method": method, **arguments}
    plan = classify_heads(q, k, layout.grid, **arguments)
    chosen = None
    if (plan.kind == Kind.WINDOWS).all():  # many of these heads' windows score alike
        shape = blocks or block_shape(q.shape[-1])
        s, kv_len = arguments["sparsity"], arguments.get("kv_len")
        chosen = check_choice(layout, shape, q, k, s, kv_len, spread=False)
    wanted = whole_scores.attend(q, k, v, layout.grid, blocks=blocks, chosen=chosen, **arguments)
    differs = plan.kind != wanted.plan.kind
    alpha = arguments.get("alpha", 0.9)
    near = ((wanted.plan.recall_temporal - alpha).abs() < RECALL_MARGIN) | (
        (wanted.plan.recall_spatial - alpha).abs() < RECALL_MARGIN
    )
    assert not (differs & ~near).any(), (plan, wanted.plan)
    same = ~differs
    for name in ("recall_temporal", "recall_spatial", "density", "work"):
        torch.testing.assert_close(
            getattr(plan, name)[same],
            getattr(wanted.plan, name)[same],
            atol=RECALL_MARGIN,
            rtol=1e-5,
            equal_nan=True,
        )
    out = rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert out.isfinite().all()
    if (kv_len := arguments.get("kv_len")) is None:
        kv_len = torch.full(q.shape[:1], layout.tokens, device=q.device)
    padding = torch.arange(layout.tokens, device=q.device) >= kv_len[:, None]
    padding = padding[:, None, :, None]
    norms = wanted.out.masked_fill(padding, 0.0).norm(dim=(2, 3))
    errors = (out.float() - wanted.out).masked_fill(padding, 0.0).norm(dim=(2, 3)) / norms
    held = same & (kv_len > 0)[:, None]
    assert (errors < TOLERANCE[q.dtype])[held].all(), (plan.kind, errors)
    return plan


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("text", ["none", "first", "last"])
@pytest.mark.parametrize("text_tokens", [0, 1, 191, 226])
def test_all_kinds(head_size, dtype, text, text_tokens):
    if text == "none" and text_tokens:
        pytest.skip("text='none' has no text tokens")
    layout, q, k, v = make((7, 19, 23), text_tokens, text, 1, head_size, dtype)
    plan = check(layout, q, k, v, sparsity=0.5)
    assert plan.kind.tolist() == MIXED


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.3, 0.64, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_sparsities(head_size, sparsity):
    layout, q, k, v = make((9, 16, 24), 226, "first", 1, head_size, torch.bfloat16)
    check(layout, q, k, v, sparsity=sparsity)


@pytest.mark.parametrize("blocks", [(64, 32), (96, 77), (192, 64), (256, 128), (384, 200)], ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_blocks_that_a_problem_asks_for(monkeypatch, head_size, blocks):
    """On Hopper its own kernel runs the first three, the portable one the others."""
    shape = ask_for(monkeypatch, blocks)
    layout, q, k, v = make((9, 17, 25), 226, "last", 1, head_size, torch.bfloat16)
    for method in ("rainfusion", "rainfusion2"):
        check(layout, q, k, v, sparsity=0.7, method=method, blocks=shape)


@pytest.mark.quick
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_methods(head_size, method, dtype):
    layout, q, k, v = make((9, 17, 25), 20, "last", 1, head_size, dtype)
    for sparsity in (0.3, 0.8):
        check(layout, q, k, v, sparsity=sparsity, method=method)


@pytest.mark.parametrize(
    "grid",
    [
        (2, 1, 1),
        (1, 1, 127),
        (1, 1, 129),
        (3, 1, 191),
        (3, 1, 193),
        (2, 3, 5),
        (3, 16, 16),
        (4, 8, 16),
        (33, 5, 9),
        (3, 45, 31),
    ],
    ids=str,
)
@pytest.mark.parametrize("sink_frames", [0, 1, 2])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_odd_grids(head_size, grid, sink_frames):
    layout, q, k, v = make(grid, 3, "first", sink_frames, head_size, torch.bfloat16, seed=3)
    for method in ("rainfusion", "piecewise"):
        check(layout, q, k, v, sparsity=0.5, method=method)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize(
    "lengths",
    [
        (0, 1),
        (1, 3059),
        (79, 81),
        (111, 113),
        (127, 129),
        (191, 193),
        (3000, 2500),
        (3285, 3060),
    ],
)
def test_kv_len(head_size, lengths):
    layout, q, k, v = make((7, 19, 23), 226, "last", 1, head_size, torch.bfloat16)
    kv_len = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    for method in ("rainfusion", "rainfusion2"):
        check(layout, q, k, v, sparsity=0.5, kv_len=kv_len, method=method)


# Frames of a share of a block, of a block and of several; sinks at the end alone, sinks of both
# ends in one block, more of them than a block, and nothing but sinks.
@pytest.mark.parametrize(
    ("grid", "sinks"),
    [
        ((7, 19, 23), (1, 1)),
        ((9, 17, 25), (0, 1)),
        ((8, 5, 7), (2, 3)),
        ((6, 8, 24), (1, 2)),
        ((5, 1, 9), (1, 1)),
        ((7, 45, 31), (1, 2)),
        ((4, 9, 15), (2, 2)),
        ((3, 9, 15), (1, 9)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("text", "text_tokens"), [("none", 0), ("first", 77), ("last", 226)])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_sinks_at_the_end(head_size, text, text_tokens, grid, sinks):
    first, last = sinks
    layout, q, k, v = make(
        grid, text_tokens, text, first, head_size, torch.bfloat16, seed=5, last=last
    )
    for method in METHODS:
        check(layout, q, k, v, sparsity=0.6, method=method)


# In the leading text or frame, in blocks of neither, in the sinks at the end, in the text there.
@pytest.mark.parametrize("lengths", [(0, 1), (200, 500), (1500, 2700), (2622, 2623), (2900, 3100)])
@pytest.mark.parametrize("text", ["first", "last"])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_kv_len_and_sinks_at_the_end(head_size, text, lengths):
    layout, q, k, v = make((7, 19, 23), 226, text, 1, head_size, torch.bfloat16, last=1)
    kv_len = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    for method in ("rainfusion", "rainfusion2"):
        check(layout, q, k, v, sparsity=0.5, kv_len=kv_len, method=method)


# Frames of a share of a block, of a block and of several; exact ones apart, beside sinks and among
# them, in blocks that hold parts of others, and all that are no sinks.
@pytest.mark.parametrize(
    ("grid", "last", "exact"),
    [
        ((9, 19, 23), 0, ((4, 5),)),
        ((11, 17, 25), 1, ((0, 2), (5, 7), (10, 11))),
        ((12, 5, 7), 2, ((3, 4), (6, 9))),
        ((8, 8, 24), 0, ((1, 2), (3, 4), (5, 6), (7, 8))),
        ((5, 9, 15), 1, ((1, 4),)),
    ],
    ids=str,
)
@pytest.mark.parametrize(("text", "text_tokens"), [("none", 0), ("first", 77), ("last", 226)])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_exact_frames(head_size, text, text_tokens, grid, last, exact):
    layout, q, k, v = make(
        grid, text_tokens, text, 1, head_size, torch.bfloat16, seed=7, last=last, exact=exact
    )
    for method in ("rainfusion_two_way", "rainfusion2", "piecewise"):
        plan = check(layout, q, k, v, sparsity=0.8, method=method)
        rows = layout.is_exact().to(q.device)
        arguments = {**places_of(layout), "method": method}
        out = rainfusion_attention(q, k, v, grid, sparsity=0.8, **arguments)
        dense = rainfusion_attention(q, k, v, grid, sparsity=0.0, **arguments)
        error = relative_error(out[:, :, rows], dense[:, :, rows])
        assert error < TOLERANCE[torch.bfloat16], (method, error)
        if exact == ((1, 4),):
            assert (plan.density == 1).all()


def test_every_element_is_written_and_runs_are_bit_equal():
    layout, q, k, v = make((5, 19, 23), 77, "first", 1, 64, torch.bfloat16)
    first = rainfusion_attention(q, k, v, layout.grid, text="first", method="rainfusion")
    poison = torch.full_like(q, float("nan"))
    del poison
    second = rainfusion_attention(q, k, v, layout.grid, text="first", method="rainfusion")
    assert first.isfinite().all()
    assert torch.equal(first, second)


def test_strided_views_are_read_in_place():
    layout, q, k, v = make((5, 19, 23), 0, "none", 1, 64, torch.bfloat16)
    wanted = rainfusion_attention(q, k, v, layout.grid, method="rainfusion")
    packed = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).contiguous()  # [B, S, 3, N, D]
    views = [packed[:, :, i].transpose(1, 2) for i in range(3)]
    out = rainfusion_attention(*views, layout.grid, method="rainfusion")
    assert torch.equal(out, wanted)


def test_scale_and_alpha():
    layout, q, k, v = make((5, 19, 23), 0, "none", 1, 128, torch.bfloat16)
    check(layout, q, k, v, scale=0.02)
    plan = classify_heads(q, k, layout.grid, method="rainfusion", alpha=0.0)
    assert (plan.kind == Kind.TEMPORAL).all()
    plan = classify_heads(q, k, layout.grid, method="rainfusion", alpha=1.0)
    assert (plan.kind != Kind.DENSE).all()


def test_large_scores_stay_finite():
    layout, q, k, v = make((5, 19, 23), 20, "first", 1, 64, torch.float16)
    check(layout, q * 16, k * 4, v)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("levels", LEVELS)
def test_scores_that_rise_from_tile_to_tile(levels, head_size, dtype):
    layout = TokenLayout(GRID, TOKENS, "none", 0)
    kv_len = torch.tensor([TOKENS, SHORT], dtype=torch.int32, device="cuda")
    heads = leveled_heads(LEVELS[levels], 2, 2, head_size, dtype, "cuda")
    check(layout, *heads, sparsity=0.0, kv_len=kv_len)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_padding_may_be_nan(sparsity, head_size, dtype):
    layout, q, k, v = make((7, 9, 15), 20, "last", 1, head_size, dtype)
    kv_len = torch.tensor([layout.tokens, SHORT], dtype=torch.int32, device="cuda")
    arguments = {"text": "last", "sparsity": sparsity, "kv_len": kv_len, "method": "rainfusion"}
    wanted = whole_scores.attend(q, k, v, layout.grid, **arguments).out
    for x in (q, k, v):
        x[1, :, SHORT:] = float("nan")
    out = rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert relative_error(out[0], wanted[0]) < TOLERANCE[dtype]
    assert relative_error(out[1, :, :SHORT], wanted[1, :, :SHORT]) < TOLERANCE[dtype]


@pytest.mark.parametrize("method", METHODS)
def test_graph_replay_while_sparsity_changes(method):
    layout, q, k, v = make((7, 19, 23), 40, "first", 1, 64, torch.bfloat16)
    sparsity = torch.zeros(1, device="cuda")
    arguments = {"text": "first", "method": method}
    rainfusion_attention(q, k, v, layout.grid, sparsity=sparsity, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = rainfusion_attention(q, k, v, layout.grid, sparsity=sparsity, **arguments)
    for value in (0.0, 0.5, 0.8, 0.0):
        sparsity.fill_(value)
        out.fill_(float("nan"))
        graph.replay()
        wanted = rainfusion_attention(q, k, v, layout.grid, sparsity=value, **arguments)
        assert torch.equal(out, wanted), value


@pytest.mark.parametrize("method", ["rainfusion", "piecewise"])
def test_two_streams(method):
    layout, q, k, v = make((7, 19, 23), 40, "first", 1, 64, torch.bfloat16)
    arguments = {"text": "first", "method": method}
    wanted = [
        rainfusion_attention(q, k, v, layout.grid, sparsity=s, **arguments) for s in (0.3, 0.8)
    ]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in wanted]
    for _ in range(5):
        outs = []
        for stream, s in zip(streams, (0.3, 0.8), strict=True):
            with torch.cuda.stream(stream):
                outs.append(rainfusion_attention(q, k, v, layout.grid, sparsity=s, **arguments))
        torch.cuda.synchronize()
        assert all(torch.equal(a, b) for a, b in zip(outs, wanted, strict=True))


def test_offsets_past_2_31_elements():
    """q, k, v of more than 2^31 elements: the last head must be right."""
    grid = (4, 64, 64)
    heads = 2**31 // (math.prod(grid) * 128) + 2
    base = torch.randn(3, 1, 2, math.prod(grid), 128, device="cuda", dtype=torch.bfloat16)
    q, k, v = (x.repeat(1, heads // 2, 1, 1) for x in base)
    assert q.numel() > 2**31
    out = rainfusion_attention(q, k, v, grid, method="rainfusion")
    assert torch.equal(out[:, -2:], out[:, :2])
    wanted = reference.rainfusion_attention(*base.float(), grid, method="rainfusion")
    assert relative_error(out[:, -2:], wanted) < TOLERANCE[torch.bfloat16]


def test_unsupported_is_refused_before_launch():
    from rainfusion_trt.errors import UnsupportedError

    q = torch.randn(1, 1, 256, 80, device="cuda", dtype=torch.bfloat16)
    with pytest.raises(UnsupportedError, match="80"):
        rainfusion_attention(q, q, q, (4, 8, 8))
    q = torch.randn(1, 1, 256, 64, device="cuda")
    with pytest.raises(UnsupportedError, match="float32"):
        rainfusion_attention(q, q, q, (4, 8, 8))
