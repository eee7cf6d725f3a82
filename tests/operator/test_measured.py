"""The operator that also says what it computed: the same attention, and the plan's density."""

from __future__ import annotations

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.operator import measured  # noqa: F401  (registers the operator)
from rainfusion_trt.operator.ops import classify_heads

GRID = (7, 8, 8)
FLAT = ("first", "rainfusion", 0.9, 1, 0.0, "16bit", 0, [])


def tensors(device: str, dtype: torch.dtype, sparsity: float) -> tuple:
    generator = torch.Generator().manual_seed(4)
    q, k, v = torch.randn(3, 2, 3, 40 + 448, 64, generator=generator).to(device, dtype).unbind(0)
    grid = q.new_empty(1).expand(GRID)
    kv_len = torch.tensor([488, 471], dtype=torch.int32, device=device)
    return q, k, v, grid, torch.tensor([sparsity], device=device), kv_len


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
@pytest.mark.parametrize(
    ("device", "dtype"),
    [("cpu", torch.float32), pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu)],
)
def test_attention_and_density(device, dtype, sparsity):
    arguments = tensors(device, dtype, sparsity)
    out, density = torch.ops.rainfusion.attention_measured(*arguments, *FLAT)
    assert torch.equal(out, torch.ops.rainfusion.attention(*arguments, *FLAT))
    q, k, _, _, s, kv_len = arguments
    plan = classify_heads(q, k, GRID, text="first", sparsity=s, kv_len=kv_len, method=FLAT[1])
    assert torch.equal(density, plan.density) and density.shape == (2, 3)
    assert (density == 1).all() if sparsity == 0 else (density < 0.95).all()


def test_operator_is_sound():
    """Schema, fake tensors and the gradient."""
    arguments = (*tensors("cpu", torch.float32, 0.5), *FLAT)
    torch.library.opcheck(torch.ops.rainfusion.attention_measured, arguments)
    q, k, v, *rest = tensors("cpu", torch.float64, 0.0)
    q.requires_grad_(True)
    out, density = torch.ops.rainfusion.attention_measured(q, k, v, *rest, *FLAT)
    right = rainfusion_trt.rainfusion_attention(
        q, k, v, GRID, text="first", sparsity=0.0, kv_len=rest[-1]
    )
    weight = torch.randn_like(out)
    actual, expected = (torch.autograd.grad((o * weight).sum(), q)[0] for o in (out, right))
    assert torch.equal(actual, expected) and not density.requires_grad
