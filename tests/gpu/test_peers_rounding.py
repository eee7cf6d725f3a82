"""What is ours of the peers' kernels: heads rounded to e4m3 for FlashAttention-3."""

from __future__ import annotations

import pytest
import torch

from benchmarks.attention.peers.build import Library, build
from benchmarks.attention.peers.flash_attention import FlashAttention3

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def test_heads_are_rounded_under_their_own_scales(tmp_path):
    """As torch rounds them, of any length; a head of zeros too."""
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("peers are compiled for compute capability 9.0")
    paths = build([Library("round_heads", "round_heads.cu")], tmp_path)
    x = torch.randn(2, 3, 1037, 64, device="cuda", dtype=torch.bfloat16)
    x *= torch.tensor([1.0, 100.0, 0.0], device="cuda").view(1, 3, 1, 1)
    out, descale = FlashAttention3(paths).rounded(x)
    wanted = x.float().abs().amax((2, 3)).clamp(min=1e-12) / 448
    torch.testing.assert_close(descale, wanted, rtol=1e-6, atol=0.0)
    # Half a step of e4m3 of 3 mantissa bits, or of its smallest, 2^-9; a float's rounding beside.
    error = (out.float() * descale[..., None, None] - x.float()).abs()
    step = torch.maximum(x.float().abs() * 2**-4, descale[..., None, None] * 2**-10)
    assert (error <= step * (1 + 1e-5)).all()
