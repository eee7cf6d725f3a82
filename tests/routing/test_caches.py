"""diffusers' caches skip attention in some steps: with RainFusion as without it."""

from __future__ import annotations

import pytest
import torch

import rainfusion_trt
from tests.helpers.diffusers_caches import NOTHING_FOR_WAN, cache_config, cache_kinds
from tests.helpers.routed_models import call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", cache_kinds())
@pytest.mark.parametrize("first", ["cache", "enable"])
def test_steps_are_those_of_diffusers(kind, first):
    def steps(sparsity: float | None):
        model, transformer = tiny("wan2.1-1.3b")
        call = call_of(model, transformer, batch=2)  # FasterCache runs half of it in some steps
        routing, now = None, [999]
        order = ("cache", "enable") if first == "cache" else ("enable", "cache")
        for what in order:
            if what == "cache":
                transformer.enable_cache(cache_config(kind, lambda: now[0]))
            elif sparsity is not None:
                routing = rainfusion_trt.enable(transformer, sparsity=sparsity, method="rainfusion")
        outputs, reports = [], []
        for step in range(4):
            now[0] = 900 - 200 * step
            call["timestep"] = torch.full_like(call["timestep"], now[0])
            call["hidden_states"] = call["hidden_states"] * 1.01
            where = {"step_index": step, "num_inference_steps": 4, "sigma": 0.9 - 0.2 * step}
            with transformer.cache_context("cond", **where):
                outputs.append(run(transformer, call))
            reports.append(routing and routing.report())
        return outputs, reports

    dense, _ = steps(None)
    actual, reports = steps(0.0)
    for a, b in zip(actual, dense, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    assert len(reports[0].routed) == 2
    skipped = any(report.skipped or not report.routed for report in reports)
    assert skipped == (kind not in NOTHING_FOR_WAN)
    sparse, _ = steps(0.7)
    assert (sparse[0] - dense[0]).abs().max() > 1e-4
