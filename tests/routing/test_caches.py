"""diffusers' caches skip attention in some steps: with RainFusion as without it."""

from __future__ import annotations

import inspect
import typing

import diffusers.hooks
import pytest
import torch
from diffusers.models.cache_utils import CacheMixin

import rainfusion_trt
from tests.helpers.routed_models import call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def _config(kind: str, step: typing.Callable[[], int]):
    """A configuration that skips within a few steps."""
    kinds = diffusers.hooks
    return {
        "PyramidAttentionBroadcastConfig": lambda: kinds.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            current_timestep_callback=step,
        ),
        "FasterCacheConfig": lambda: kinds.FasterCacheConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 1001),
            unconditional_batch_skip_range=2,
            unconditional_batch_timestep_skip_range=(-1, 1001),
            current_timestep_callback=step,
            attention_weight_callback=lambda _: 0.5,
            tensor_format="BCFHW",
        ),
        "FirstBlockCacheConfig": lambda: kinds.FirstBlockCacheConfig(threshold=100.0),
        "MagCacheConfig": lambda: kinds.MagCacheConfig(
            threshold=10.0, num_inference_steps=4, retention_ratio=0.25, mag_ratios=torch.ones(4)
        ),
        "TaylorSeerCacheConfig": lambda: kinds.TaylorSeerCacheConfig(
            cache_interval=2,
            disable_cache_before_step=1,
            max_order=1,
            cache_identifiers=[r"blocks\.\d+\.attn1"],
            # In bfloat16, the default, a difference of the last bit grows to a thousandth.
            taylor_factors_dtype=torch.float32,
        ),
        "SeaCacheConfig": lambda: kinds.SeaCacheConfig(threshold=100.0),
        "TextKVCacheConfig": lambda: kinds.TextKVCacheConfig(),
    }[kind]()


# Wan has none of what these cache.
_NOTHING_FOR_WAN = {"TextKVCacheConfig"}


def cache_kinds() -> list[str]:
    """Every configuration that CacheMixin.enable_cache asks for; a new one fails here first."""
    source = inspect.getsource(CacheMixin.enable_cache)
    body = source.partition('"""')[2].partition('"""')[2]
    return sorted(name for name in dir(diffusers.hooks) if name.endswith("Config") and name in body)


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
                transformer.enable_cache(_config(kind, lambda: now[0]))
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
    assert skipped == (kind not in _NOTHING_FOR_WAN)
    sparse, _ = steps(0.7)
    assert (sparse[0] - dense[0]).abs().max() > 1e-4
