"""The kernels' log-sum-exp against that of float32 (``helpers.whole_scores``), on a GPU.

Tolerance: both sides see the same rounded inputs. A score is a sum of D products in float32, which
tensor cores truncate: an error of at most D * 2^-22 * scale * |q| * |k| with float32's own.
The sum of at most S exponentials adds S * 2^-23 relative, which is absolute in the logarithm;
the exponentials' own 2^-22 is far inside that.
"""

from __future__ import annotations

import math

import pytest
import torch

from helpers import whole_scores
from helpers.layouts import places_of
from helpers.rising_scores import GRID, RISES, TOKENS, leveled_heads, levels_of_rise
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.operator.geometry import METHODS, Kind, TokenLayout
from rainfusion_trt.testing import synthetic_heads

pytestmark = pytest.mark.gpu

DTYPES = [torch.float16, torch.bfloat16]
MIXED = [
    [Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL],
    [Kind.TEXTURAL, Kind.SPATIAL, Kind.TEMPORAL],
]


def make(grid, text_tokens, text, head_size, dtype, sink_frames=1, last=0):
    layout = TokenLayout(grid, math.prod(grid) + text_tokens, text, sink_frames, last)
    return layout, *synthetic_heads(layout, MIXED, head_size, dtype=dtype, device="cuda")


def tolerance(q, k, scale):
    """float32 [B, N, S], see the head of this file."""
    products = q.float().norm(dim=-1) * k.float().norm(dim=-1).amax(-1, keepdim=True)
    tokens, head_size = q.shape[2:]
    return head_size * 2.0**-22 * scale * products + tokens * 2.0**-23


def check(layout, q, k, v, method="rainfusion", **arguments):
    arguments = {**places_of(layout), "method": method, **arguments}
    out, lse = rainfusion_attention(q, k, v, layout.grid, return_lse=True, **arguments)
    assert torch.equal(out, rainfusion_attention(q, k, v, layout.grid, **arguments))
    assert lse.dtype == torch.float32 and lse.shape == q.shape[:3]
    _, wanted, wanted_plan = whole_scores.attend(q, k, v, layout.grid, **arguments)
    plan = classify_heads(q, k, layout.grid, **arguments)
    same = plan.kind == wanted_plan.kind
    assert same.float().mean() >= 0.5  # a recall at its threshold may go either way
    rows = same[:, :, None].expand_as(lse)
    if (kv_len := arguments.get("kv_len")) is not None:
        real = torch.arange(layout.tokens, device="cuda") < kv_len[:, None]
        rows = rows & (real | (kv_len == 0)[:, None])[:, None]
        assert not lse.isnan().any() and not lse.isposinf().any()
    assert torch.equal(lse[rows].isneginf(), wanted[rows].isneginf())
    finite = rows & wanted.isfinite()
    scale = arguments.get("scale") or 1 / math.sqrt(q.shape[-1])
    error = (lse - wanted)[finite].abs() / tolerance(q, k, scale)[finite]
    assert error.numel() == 0 or error.max() <= 1, error.max()
    return plan, lse


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize(("text", "text_tokens"), [("none", 0), ("first", 1), ("last", 226)])
def test_all_kinds(head_size, dtype, text, text_tokens):
    layout, q, k, v = make((7, 19, 23), text_tokens, text, head_size, dtype)
    plan, lse = check(layout, q, k, v, sparsity=0.5)
    assert plan.kind.tolist() == MIXED
    assert lse.isfinite().all()


@pytest.mark.quick
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_methods(head_size, method, dtype):
    for last in (0, 2):
        layout, q, k, v = make((9, 17, 25), 20, "last", head_size, dtype, last=last)
        for sparsity in (0.0, 0.3, 0.8):
            check(layout, q, k, v, sparsity=sparsity, method=method)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("lengths", [(0, 1), (127, 129), (191, 193), (3000, 3285)])
def test_kv_len(head_size, lengths):
    layout, q, k, v = make((7, 19, 23), 226, "last", head_size, torch.bfloat16)
    kv_len = torch.tensor(lengths, dtype=torch.int32, device="cuda")
    for method in ("rainfusion", "rainfusion2"):
        _, lse = check(layout, q, k, v, sparsity=0.5, kv_len=kv_len, method=method)
        assert torch.equal(lse.isneginf().all(2).all(1), kv_len == 0)


@pytest.mark.parametrize("length", [130, 300])
def test_padding_whose_keys_are_all_padding_gets_minus_infinity(length):
    layout, q, k, v = make((7, 19, 23), 0, "none", 64, torch.bfloat16, sink_frames=0)
    kv_len = torch.full((2,), length, dtype=torch.int32, device="cuda")
    plan, lse = check(layout, q, k, v, sparsity=0.8, kv_len=kv_len, method="rainfusion_two_way")
    last = lse[plan.kind == Kind.SPATIAL][:, -1]
    assert last.numel() > 0 and last.isneginf().all()


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize(
    "grid", [(2, 1, 1), (1, 1, 129), (3, 1, 193), (33, 5, 9), (3, 45, 31)], ids=str
)
def test_odd_grids(grid, head_size):
    layout, q, k, v = make(grid, 3, "first", head_size, torch.float16)
    check(layout, q, k, v, sparsity=0.5)


def test_large_scores_and_scale():
    layout, q, k, v = make((5, 19, 23), 20, "first", 64, torch.float16)
    check(layout, q * 16, k * 4, v)
    check(layout, q, k, v, scale=0.02)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("rise", RISES, ids=str)
def test_scores_that_rise_from_tile_to_tile(rise, head_size):
    layout = TokenLayout(GRID, TOKENS, "none", 0)
    heads = leveled_heads(levels_of_rise(*rise), 1, 2, head_size, torch.bfloat16, "cuda")
    check(layout, *heads, sparsity=0.0)


@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_ring_attention_over_parts_of_the_keys_is_dense_attention(head_size):
    shape = (3, 2, 2, 8 * 19 * 23, head_size)
    q, k, v = torch.randn(shape, device="cuda", dtype=torch.bfloat16).unbind(0)
    wanted = torch.nn.functional.scaled_dot_product_attention(q.float(), k.float(), v.float())
    halves = [x.chunk(2, dim=2) for x in (q, k, v)]
    combined = []
    for query in halves[0]:
        parts = [
            rainfusion_attention(query, key, value, (4, 19, 23), sparsity=0.0, return_lse=True)
            for key, value in zip(*halves[1:], strict=True)
        ]
        outs, lses = (torch.stack(x) for x in zip(*parts, strict=True))
        combined.append((torch.softmax(lses, 0)[..., None] * outs.float()).sum(0))
    # Probabilities and outputs are rounded to bfloat16, 2^-8 / sqrt(3) each; see test_kernels.py.
    error = (torch.cat(combined, 2) - wanted).norm() / wanted.norm()
    assert error < 1e-2


@pytest.mark.parametrize("method", ["rainfusion", "piecewise"])
def test_graph_replay_writes_the_log_sum_exp(method):
    layout, q, k, v = make((7, 19, 23), 40, "first", 64, torch.bfloat16)
    sparsity = torch.zeros(1, device="cuda")
    arguments = {"text": "first", "method": method, "return_lse": True}
    rainfusion_attention(q, k, v, layout.grid, sparsity=sparsity, **arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = rainfusion_attention(q, k, v, layout.grid, sparsity=sparsity, **arguments)
    for value in (0.0, 0.5, 0.0):
        sparsity.fill_(value)
        for x in outputs:
            x.fill_(float("nan"))
        graph.replay()
        wanted = rainfusion_attention(q, k, v, layout.grid, sparsity=value, **arguments)
        assert all(torch.equal(a, b) for a, b in zip(outputs, wanted, strict=True)), value


def test_operator_is_well_registered_on_cuda():
    layout, q, k, v = make((5, 19, 23), 0, "none", 64, torch.bfloat16)
    grid, sparsity = q.new_empty(layout.grid), torch.tensor([0.5], device="cuda")
    torch.library.opcheck(
        torch.ops.rainfusion.attention_lse.default,
        (q, k, v, grid, sparsity, None, "none", "rainfusion", 0.9, 1, 0.0, "16bit", 0, []),
        test_utils=("test_schema", "test_faketensor"),
    )
