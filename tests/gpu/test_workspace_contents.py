"""Results do not depend on what memory held before a call, on a GPU, to the last bit.

The contents of fresh memory are anybody's, on the device and in a multiprocessor: a kernel that
reads what nobody wrote gives the right numbers until the memory is used a second time.
"""

from __future__ import annotations

import math

import pytest
import torch

from helpers.gpu import skip_without_kernel
from rainfusion_trt import rainfusion_attention

pytestmark = pytest.mark.gpu

TEXT_TOKENS = 37
GRIDS = {"rows cut": (13, 9, 11), "frames cut": (19, 9, 11)}  # what cuts windows off there
grids = pytest.mark.parametrize("grid", GRIDS.values(), ids=list(GRIDS))
FILLS = (0x00, 0xFF, 0x7F, 0x3C, None)  # zeros, NaN, huge numbers, small ones, noise


class Fill:
    """Empty tensors whose memory holds chosen bytes."""

    def __init__(self, monkeypatch):
        self.byte: int | None = 0
        self.count = 0
        for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
            monkeypatch.setattr(owner, name, self.filled(getattr(owner, name)))

    def filled(self, make):
        def wrapped(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_cuda and tensor.is_contiguous() and tensor.numel():
                self.count += 1
                content = tensor.view(-1).view(torch.uint8)
                if self.byte is None:
                    content.random_(0, 256)
                else:
                    content.fill_(self.byte)
            return tensor

        return wrapped


CASES = [
    (method, precision, head_size)
    for method, precision in [
        ("rainfusion", "16bit"),
        ("rainfusion_two_way", "16bit"),
        ("rainfusion_plus", "16bit"),
        ("rainfusion2", "16bit"),
        ("rainfusion2", "8bit"),
        ("piecewise", "16bit"),
        ("piecewise", "8bit"),
    ]
    for head_size in (64, 96, 128)
    if (precision, head_size) != ("8bit", 96)  # has no kernel
]
HEADS = 64  # in two clips: several blocks for every multiprocessor


def tokens_of(grid):
    return math.prod(grid) + TEXT_TOKENS


def tensors(grid, head_size, heads=2):
    """q, k and v, bfloat16 [2, N, S, D]."""
    generator = torch.Generator("cuda").manual_seed(3)
    shape = (3, 2, heads, tokens_of(grid), head_size)
    return torch.randn(shape, generator=generator, device="cuda").to(torch.bfloat16).unbind(0)


def lengths(grid, short):
    """kv_len of two clips, whose second ends so many tokens early."""
    if short is None:
        return None
    return torch.tensor([tokens_of(grid), tokens_of(grid) - short], dtype=torch.int32).cuda()


def compute(q, k, v, grid, method, precision, sparsity=0.7, **arguments):
    return rainfusion_attention(
        q,
        k,
        v,
        grid,
        method=method,
        precision=precision,
        sparsity=sparsity,
        text="last",
        sink_frames=1,
        last_sink_frames=1,
        return_lse=True,
        **arguments,
    )


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("short", [None, 300, 1290])
@pytest.mark.parametrize(("method", "precision", "head_size"), CASES)
def test_contents_of_device_memory(monkeypatch, method, precision, head_size, short, sparsity):
    skip_without_kernel(precision)
    grid = GRIDS["rows cut"]
    q, k, v = tensors(grid, head_size)
    kv_len = lengths(grid, short)
    fill = Fill(monkeypatch)
    outputs = []
    for fill.byte in FILLS:
        outputs.append(compute(q, k, v, grid, method, precision, sparsity, kv_len=kv_len))
    assert fill.count >= 3 * len(FILLS)  # the workspace, the output and the log-sum-exp
    for output in outputs[1:]:
        assert_same_bits(output, outputs[0])


# Not of ARM alone: alpha = 0 makes heads temporal or spatial, whose masks are read.
@pytest.mark.parametrize("alpha", [0.0, 0.9])
@pytest.mark.parametrize("method", ["rainfusion", "rainfusion_two_way"])
def test_contents_of_device_memory_for_kinds_of_heads(monkeypatch, method, alpha):
    grid = GRIDS["rows cut"]
    q, k, v = tensors(grid, 128)
    fill = Fill(monkeypatch)
    outputs = []
    for fill.byte in FILLS:
        outputs.append(compute(q, k, v, grid, method, "16bit", alpha=alpha))
    for output in outputs[1:]:
        assert_same_bits(output, outputs[0])


@grids
@pytest.mark.parametrize(("method", "precision", "head_size"), CASES)
def test_what_other_calls_leave_in_multiprocessors(grid, method, precision, head_size):
    """The same kernel, with as many blocks as to reach every one, leaves what it computed with."""
    skip_without_kernel(precision)
    q, k, v = tensors(grid, head_size, HEADS)

    def leave(value):
        x = torch.full_like(q, value)
        compute(x, x, x, grid, method, precision, sparsity=0.0)

    leave(0.0)
    expected = compute(q, k, v, grid, method, precision)
    for value in (float("nan"), 30.0, 1e4, 0.0) * 3:
        leave(value)
        assert_same_bits(compute(q, k, v, grid, method, precision), expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("short", [None, 300])
@grids
@pytest.mark.parametrize(("method", "precision", "head_size"), CASES)
def test_what_one_clip_holds_stays_there(grid, method, precision, head_size, short, value):
    skip_without_kernel(precision)
    q, k, v = tensors(grid, head_size, HEADS)
    kv_len = lengths(grid, short)
    expected = [x[1] for x in compute(q, k, v, grid, method, precision, kv_len=kv_len)]
    assert all(x.isfinite().all() for x in expected if short is None)
    q[0, 5:9] = k[0] = v[0] = value
    for _ in range(3):
        found = [x[1] for x in compute(q, k, v, grid, method, precision, kv_len=kv_len)]
        assert_same_bits(found, expected)
