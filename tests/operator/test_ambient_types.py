"""Results do not depend on torch's default type, nor on a region of autocast around a call."""

from __future__ import annotations

import contextlib

import pytest
import torch

from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.operator import eight_bit
from rainfusion_trt.operator.settings import METHODS

GRID, TEXT_TOKENS = (5, 6, 7), 3


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("surroundings", SURROUNDINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize(
    ("method", "precision"),
    [*((method, "16bit") for method in METHODS), ("rainfusion2", "8bit"), ("piecewise", "8bit")],
)
def test_results_do_not_depend_on(surroundings, dtype, method, precision):
    eight_bit._hadamard.cache_clear()  # as in a process whose first call this is
    shape = (3, 1, 2, GRID[0] * GRID[1] * GRID[2] + TEXT_TOKENS, 64)
    q, k, v = torch.randn(shape, generator=torch.manual_seed(5)).to(dtype).unbind(0)
    arguments = {
        "grid": GRID,
        "text": "last",
        "method": method,
        "precision": precision,
        "sparsity": 0.7,
    }

    def results():
        out, lse = rainfusion_attention(q, k, v, return_lse=True, **arguments)
        return [out, lse, *classify_heads(q, k, **arguments)]

    with SURROUNDINGS[surroundings]():
        found = results()
    for one, other in zip(found, results(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)  # recalls may be NaN
