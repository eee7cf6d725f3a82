"""Under torch.autocast attention has autocast's type, as PyTorch's own has it there."""

from __future__ import annotations

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.routing import autocast
from tests.helpers.plain_dit import PlainDiT, example
from tests.helpers.routed_models import ALL_CLASSES, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
BF16 = torch.bfloat16


def error(actual, expected) -> float:
    return float((actual.float() - expected).norm() / expected.float().norm())


def under_autocast(transformer, call):
    with torch.autocast("cpu", BF16):
        return run(transformer, call)


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_sparsity_0_equals_eager_under_autocast(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    exact, eager = run(transformer, call), under_autocast(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0, model=name, allow_dense=True)
    # Both round to bfloat16 in the same places, so that they are equally far from float32.
    assert error(under_autocast(transformer, call), exact) < 1.5 * error(eager, exact)


@pytest.mark.parametrize("compiled", [False, True])
def test_sparse_attention_is_that_of_rounded_inputs(compiled):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    exact, eager = run(transformer, call), under_autocast(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.5)
    sparse = run(transformer, call)
    if compiled:
        torch._dynamo.reset()
        transformer = torch.compile(transformer, backend="eager", fullgraph=True)
    # Twice: a choice that rounding turns over is one between windows that matter equally.
    assert error(under_autocast(transformer, call), sparse) < 2 * error(eager, exact)
    assert error(sparse, exact) > 1e-3


def test_attention_found_by_its_tokens():
    torch.manual_seed(0)
    module, call = PlainDiT().eval().requires_grad_(False), example(7, 16, 16)
    with torch.autocast("cpu", BF16):
        eager = module(**call)
        routing = rainfusion_trt.enable(module, grid=(7, 8, 8), sparsity=0.8, method="rainfusion")
        sparse = module(**call)
    assert error(sparse, eager) > 1e-2
    routing.sparsity = 0.0
    exact = module(**call)
    with torch.autocast("cpu", BF16):
        assert error(module(**call), exact) < 1.5 * error(eager, exact)


def test_which_devices_have_autocast_is_not_asked_in_a_forward(monkeypatch):
    """torch.compile can trace the question from PyTorch 2.13 on only."""

    def asked(kind):
        raise AssertionError(f"whether {kind} has autocast")

    q, k, v = torch.randn(3, 1, 2, 4, 8)
    types = []
    with torch.autocast("cpu", BF16):
        monkeypatch.setattr(torch._C, "_is_autocast_available", asked)
        with pytest.raises(AssertionError, match="whether cpu"):
            torch.amp.is_autocast_available("cpu")
        autocast.under_autocast(lambda *x: types.extend(t.dtype for t in x) or x[0], q, k, v)
    assert types == [BF16] * 3
