"""Results do not depend on what memory held before a call, on a GPU, to the last bit.

The contents of fresh memory are anybody's, on the device and in a multiprocessor: a kernel that
reads what nobody wrote gives the right numbers until the memory is used a second time.
"""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt import rainfusion_attention
from rainfusion_trt.operator.geometry import TokenLayout

pytestmark = pytest.mark.gpu

GRID, TEXT_TOKENS = (13, 9, 11), 37
TOKENS = 13 * 9 * 11 + TEXT_TOKENS
FILLS = (0x00, 0xFF, 0x7F, 0x3C, None)  # zeros, NaN, huge numbers, ones in float16, noise


class Fill:
    """`torch.empty` and `torch.empty_like` whose memory holds chosen bytes."""

    def __init__(self, monkeypatch):
        self.byte: int | None = 0
        self.count = 0
        for name in ("empty", "empty_like"):
            monkeypatch.setattr(torch, name, self.filled(getattr(torch, name)))

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
        ("rainfusion_plus", "16bit"),
        ("rainfusion2", "16bit"),
        ("piecewise", "16bit"),
        ("piecewise", "8bit"),
    ]
    for head_size in (64, 96, 128)
    if (precision, head_size) != ("8bit", 96)  # has no kernel
]


def layer(method, precision, head_size, lengths=None, sparsity=0.7):
    """A function that computes out and lse, [B, N, S, D] and [B, N, S], of q times a factor."""
    if precision == "8bit" and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("8-bit kernels are for compute capability 9.0")
    layout = TokenLayout(GRID, TOKENS, "last", 1, 1)
    generator = torch.Generator("cuda").manual_seed(3)
    shape = (3, 2, 2, TOKENS, head_size)
    q, k, v = torch.randn(shape, generator=generator, device="cuda").to(torch.bfloat16).unbind(0)
    kv_len = None if lengths is None else torch.tensor(lengths, dtype=torch.int32, device="cuda")

    def compute(factor=1.0):
        return rainfusion_attention(
            q * factor,
            k,
            v,
            layout.grid,
            method=method,
            precision=precision,
            sparsity=sparsity,
            kv_len=kv_len,
            text="last",
            sink_frames=1,
            last_sink_frames=1,
            return_lse=True,
        )

    return compute


def assert_same_bits(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.view(torch.int16), other.view(torch.int16))


@pytest.mark.parametrize("sparsity", [0.0, 0.7])
@pytest.mark.parametrize("lengths", [None, (TOKENS, TOKENS - 300), (0, 40)])
@pytest.mark.parametrize(("method", "precision", "head_size"), CASES)
def test_contents_of_device_memory(monkeypatch, method, precision, head_size, lengths, sparsity):
    compute = layer(method, precision, head_size, lengths, sparsity)
    fill = Fill(monkeypatch)
    expected = compute()
    for fill.byte in FILLS:
        assert_same_bits(compute(), expected)
    assert fill.count >= 2 * len(FILLS)  # the workspace and the output


@pytest.mark.parametrize(("method", "precision", "head_size"), CASES)
def test_what_other_calls_leave_in_multiprocessors(method, precision, head_size):
    compute = layer(method, precision, head_size)
    expected = compute()
    for factor in (30.0, float("nan"), 0.0, 1e-3, 300.0) * 3:
        compute(factor)
        assert_same_bits(compute(), expected)
