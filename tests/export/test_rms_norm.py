"""Root mean square norms, which torch.onnx cannot convert where they are traced on CUDA."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.export.rewrites import rewrite

ROUNDING = {torch.float32: 2.0**-22, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("shape", "weighted", "epsilon"),
    [([96], True, 1e-6), ([96], False, 0.5), ([5, 96], True, 1e-5), ([96], True, None)],
)
def test_the_same_norm_without_its_operator(dtype, shape, weighted, epsilon):
    generator = torch.Generator().manual_seed(0)
    norm = torch.nn.RMSNorm(shape, eps=epsilon, elementwise_affine=weighted, dtype=dtype)
    if weighted:
        torch.nn.init.normal_(norm.weight, generator=generator)
    x = torch.randn(2, 5, 96, generator=generator).to(dtype)
    program = torch.export.export(norm, (x,)).run_decompositions({})
    operator = torch.ops.aten.rms_norm.default
    assert any(node.target is operator for node in program.graph.nodes)
    rewrite(program)
    assert all(node.target is not operator for node in program.graph.nodes)
    result = program.module()(x)
    assert result.dtype is dtype
    axes = tuple(range(-len(shape), 0))
    floor = torch.finfo(torch.float32).eps if epsilon is None else epsilon
    wanted = x.double() * (x.double().square().mean(axes, keepdim=True) + floor).rsqrt()
    if weighted:
        wanted = wanted * norm.weight.double()
    subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    # One rounding to the dtype after a handful in float32; eager rounds before the weight too.
    rtol = ROUNDING[dtype] + 2e-6
    torch.testing.assert_close(result.double(), wanted, rtol=rtol, atol=subnormal)
    eager = norm(x).double()
    torch.testing.assert_close(result.double(), eager, rtol=3 * rtol, atol=3 * subnormal)
