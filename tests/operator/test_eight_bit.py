"""8-bit attention in plain PyTorch, against its rules written out number by number."""

from __future__ import annotations

import math

import pytest
import torch

from rainfusion_trt import rainfusion_attention
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator import eight_bit
from rainfusion_trt.operator.geometry import TokenLayout, block_shape
from rainfusion_trt.operator.settings import AttentionSettings

GRID, TEXT = (6, 7, 9), 21  # 399 tokens: several tiles, the last of text and of video short


def tensors(head_size, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = math.prod(GRID) + TEXT
    q, k, v = torch.randn(3, 1, 2, tokens, head_size, generator=generator)
    k[..., :3] += 5.0  # what all keys and values have in common
    return q * spread, k, v + torch.linspace(-2, 2, head_size)


def attend(q, k, v, **arguments):
    arguments = {"text": "last", "method": "piecewise", "sparsity": 0.0, **arguments}
    return rainfusion_attention(q, k, v, GRID, **arguments)


def relative_error(out, wanted):
    return ((out.double() - wanted.double()).norm() / wanted.double().norm()).item()


def nearest_e4m3(x):
    """To the nearest of 1 sign, 4 exponent and 3 mantissa bits, halves to the even mantissa."""
    magnitude = abs(x)
    if magnitude == 0.0:
        return 0.0
    exponent = max(math.floor(math.log2(magnitude)), -6)
    unit = 2.0 ** (exponent - 3)
    return math.copysign(min(round(magnitude / unit) * unit, 448.0), x)


def walsh(row):
    """sum_j (-1)^popcount(i & j) row_j"""
    size = len(row)
    return [sum((-1) ** (i & j).bit_count() * row[j] for j in range(size)) for i in range(size)]


def rounded_values(values):
    """A tile's values: of every four, three get a quarter of what rounding took from the last."""
    rounded, lost = [], []
    for row, value in enumerate(values):
        before = lost if row % 4 else [0.0] * len(value)
        wanted = [x + e / 4 for x, e in zip(value, before, strict=True)]
        rounded.append([nearest_e4m3(x) for x in wanted])
        lost = [x - y for x, y in zip(wanted, rounded[-1], strict=True)]
    return rounded


def row_by_rule(q, k, v, row, tiles, own, scale):
    """One row of dense attention by the rules of docs/rainfusion.md, in float64 lists.

    `tiles` are the tokens of each, and `own` is the one with the middle of the row's block.
    """
    size = len(q[row])
    sample = k[::8]
    centre = [sum(key[d] for key in sample) / len(sample) for d in range(size)]
    means = [sum(value[d] for value in v) / len(v) for d in range(size)]
    unit = [max(abs(value[d] - means[d]) for value in v) / 448 for d in range(size)]
    query = walsh(q[row])
    query_unit = max(map(abs, query)) / 127
    query = [round(x / query_unit) for x in query]
    values = []
    for begin, end in tiles:
        scaled = [[(x - m) / u for x, m, u in zip(value, means, unit, strict=True)]
                  for value in v[begin:end]]  # fmt: skip
        values += rounded_values(scaled)
    left = [sum(value[d] for value in values) / len(v) for d in range(size)]
    out, total, reference = [0.0] * size, 0.0, None
    for begin, end in [own, *(tile for tile in tiles if tile != own)]:
        keys = [walsh([key[d] - centre[d] for d in range(size)]) for key in k[begin:end]]
        key_unit = max(abs(x) for key in keys for x in key) / 127
        factor = query_unit * key_unit / size * scale / math.log(2)
        scores = [factor * sum(a * round(b / key_unit) for a, b in zip(query, key, strict=True))
                  for key in keys]  # fmt: skip
        first = reference is None
        if first:
            reference = max(scores) - 8
        p = [2 ** (s - reference) for s in scores]
        largest = max(sum(x for j, x in enumerate(p) if j % 8 // 2 == t) for t in range(4))
        if largest > 448 and not first:
            # The largest becomes a power of two, and the sum at most 64.
            move = math.log2(max(p)) - math.floor(math.log2(max(p) * 64 / largest))
            reference += move
            p = [x / 2**move for x in p]
            out, total = [x / 2**move for x in out], total / 2**move
        total += sum(p)
        for x, value in zip(p, values[begin:end], strict=True):
            weight = nearest_e4m3(x)
            for d in range(size):
                out[d] += weight * value[d]
    lse = math.log(total) + reference * math.log(2)
    lse += scale * sum(a * b for a, b in zip(q[row], centre, strict=True))
    centre = [m - u * x for m, u, x in zip(means, unit, left, strict=True)]
    return [x / total * u + m for x, u, m in zip(out, unit, centre, strict=True)], lse


@pytest.mark.parametrize(("spread", "rows"), [
    pytest.param(1.0, (0, 17, 398), id="flat"),
    pytest.param(3.0, (241, 313), id="references move, by keys of which none is all of the sum"),
    pytest.param(12.0, (0, 17, 398), id="steep, so that references move"),
])  # fmt: skip
def test_is_what_the_rules_say(spread, rows):
    q, k, v = tensors(64, spread)
    out, lse = attend(q, k, v, precision="8bit", return_lse=True)
    size = block_shape(64, "8bit").k
    layout = TokenLayout(GRID, q.shape[2], "last", 1)
    tiles = [(block.begin, block.end) for block in layout.blocks(size)]
    lists = [x[0, 1].double().tolist() for x in (q, k, v)]
    for row in rows:
        (block,) = (b for b in layout.blocks(192) if b.begin <= row < b.end)
        middle = (block.begin + block.end) // 2
        (own,) = (tile for tile in tiles if tile[0] <= middle < tile[1])
        wanted, wanted_lse = row_by_rule(*lists, row, tiles, own, 64**-0.5)
        # float32 moves a number here and there over the edge of two roundings.
        assert relative_error(out[0, 1, row], torch.tensor(wanted)) < 2e-3
        assert lse[0, 1, row].item() == pytest.approx(wanted_lse, abs=1e-3 * spread)


@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("arguments", [
    {"sparsity": 0.0},
    {"sparsity": 0.6},
    {"sparsity": 0.6, "method": "rainfusion2"},
    {"sparsity": 0.6, "kv_len": torch.tensor([300], dtype=torch.int32)},
    {"sparsity": 0.6, "last_sink_frames": 2},
], ids=str)  # fmt: skip
def test_is_near_16_bits(head_size, arguments):
    """The same keys, chosen by the same rule from the same blocks, and rounding alone."""
    q, k, v = tensors(head_size)
    end = int(arguments["kv_len"]) if "kv_len" in arguments else q.shape[2]
    for x in (k, v):
        x[:, :, end:] = float("nan")
    out, lse = attend(q, k, v, precision="8bit", return_lse=True, **arguments)
    assert out.isfinite().all()
    shape = block_shape(head_size, "8bit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rainfusion_trt.operator.reference.block_shape", lambda *_: shape)
        wanted, wanted_lse = attend(q, k, v, return_lse=True, **arguments)
    common = v[:, :, :end].mean(2, keepdim=True)
    out, wanted, lse, wanted_lse = (
        x[:, :, :end] for x in (out - common, wanted - common, lse, wanted_lse)
    )
    # Operands rounded by at most 2^-4 in p and in v, of uniform error: each sqrt(1/3) 2^-4 of a
    # number at worst and .6 of that on the average over a binade; q and k add a third of it.
    assert relative_error(out, wanted) < 0.05
    assert (lse - wanted_lse).abs().max() < 0.1


def test_equal_values_come_out_as_they_are():
    q, k, v = tensors(64)
    v = torch.full_like(v, 0.3)
    assert torch.allclose(attend(q, k, v, precision="8bit"), v, atol=1e-6)


def test_rotation_is_orthogonal_but_for_a_factor():
    x, y = torch.randn(2, 5, 128)
    products = eight_bit.rotated(x) @ eight_bit.rotated(y).T / 128
    assert torch.allclose(products, x @ y.T, atol=1e-4)


def test_e4m3_is_rounded_as_by_hand():
    x = torch.cat([torch.randn(500) * 10.0**power for power in range(-4, 4)])
    assert eight_bit.e4m3(x).tolist() == [nearest_e4m3(value) for value in x.tolist()]


@pytest.mark.parametrize(("head_size", "method", "words"), [
    (96, "piecewise", "has no kernel for head size 96, only for 64 and 128"),
    (64, "rainfusion", "textural heads of method 'rainfusion'"),
])  # fmt: skip
def test_what_is_not_there_is_an_error(head_size, method, words):
    with pytest.raises(UnsupportedError, match=words):
        attend(*tensors(head_size), precision="8bit", method=method)


def test_there_is_no_gradient_and_a_node():
    q, k, v = (x.requires_grad_() for x in tensors(64))
    out = attend(q, k, v, precision="8bit")
    with pytest.raises(UnsupportedError, match="has no backward pass"):
        out.sum().backward()
    assert AttentionSettings(precision="8bit").node_attributes()["precision"] == "8bit"
    assert "precision" not in AttentionSettings().node_attributes()  # as before there were 8 bits
    with pytest.raises(InvalidInputError, match="precision='4bit' is not one of 16bit, 8bit"):
        AttentionSettings(precision="4bit")


def test_pseudo_values_lose_no_mean_that_they_have_not():
    """What the output gets back for rounded values is not theirs: here nearly all of the sum."""
    generator = torch.Generator().manual_seed(0)
    grid, size = (8, 16, 20), 64
    rows = 8 * 16 * 20
    # In units of e4m3's largest, 448 of which 1 is: 18.9 becomes 18, and -6.3 becomes -6.5.
    few = torch.rand(1, 1, rows, size, generator=generator) < 0.25
    v = torch.where(few, 18.9 / 448, -6.3 / 448)
    v[:, :, 0], v[:, :, -1] = 1.0, -1.0
    q = torch.zeros_like(v)  # every score is 0, so that each output is the mean of all values
    out = rainfusion_attention(
        q, q, v, grid, sparsity=0.9, method="piecewise", sink_frames=0, precision="8bit"
    )
    error = (out - v.mean(2, keepdim=True)).mean((0, 1, 2)).abs() * 448
    # By 0.37 the mean moves in rounding. What is left: pseudo-values, near 0, are rounded finely.
    assert error.mean() < 0.1
