"""cache-dit, which caches blocks, beside `enable` and beneath `Pipeline`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model
from tests.helpers import cogvideox_pipeline, wan_pipeline
from tests.helpers.routed_models import tiny

cache_dit = pytest.importorskip("cache_dit")
pytestmark = pytest.mark.usefixtures("one_thread")
CALL = {
    "prompt": "a fox",
    "num_frames": 25,
    "height": 128,
    "width": 128,
    "num_inference_steps": 4,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
LATER = 1  # blocks behind the first one, which cache-dit always runs


def wan() -> Any:
    _, transformer = tiny("wan2.1-1.3b", num_layers=1 + LATER)
    return wan_pipeline.tiny_pipeline(transformer)


def cogvideox() -> Any:
    _, transformer = tiny("cogvideox-5b", num_layers=1 + LATER)
    pipe = cogvideox_pipeline.tiny_pipeline(get_model("cogvideox-5b"), transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def cached(pipe: Any) -> Any:
    """Two steps run, and of those that follow the first block alone."""
    config = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_warmup_steps=2, residual_diff_threshold=1e3
    )
    return cache_dit.enable_cache(pipe, cache_config=config)


def latents(pipe: Any) -> torch.Tensor:
    return pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames


@pytest.mark.parametrize("make", [wan, cogvideox])
def test_steps_are_those_of_cache_dit(make):
    pipe = make()
    plain = latents(pipe)
    cached(pipe)
    wanted = latents(pipe)
    assert (wanted - plain).abs().max() > 1e-2  # it does skip
    routing = rainfusion_trt.enable(pipe.transformer, sparsity=0.0, method="rainfusion")
    # float32 roundings of two dense attentions through four steps of guidance 4.
    torch.testing.assert_close(latents(pipe), wanted, atol=2e-4, rtol=0)
    ran = routing.report()  # of the last step
    assert (len(ran.routed), len(ran.dense), len(ran.skipped)) == (1, 0, LATER)
    routing.sparsity = 0.7
    assert (latents(pipe) - wanted).abs().max() > 1e-3
    rainfusion_trt.disable(pipe.transformer)
    torch.testing.assert_close(latents(pipe), wanted, atol=0, rtol=0)
    cache_dit.disable_cache(pipe)
    torch.testing.assert_close(latents(pipe), plain, atol=0, rtol=0)
    rainfusion_trt.enable(pipe.transformer, sparsity=0.0)
    cached(pipe)
    torch.testing.assert_close(latents(pipe), wanted, atol=2e-4, rtol=0)


def test_blocks_that_it_skips_are_counted_by_pipeline():
    pipe = wan()
    cached(pipe)
    with rainfusion_trt.Pipeline(pipe=pipe, backend="torch", device="cpu", sparsity=0.0) as made:
        result = made(**CALL, seed=0)
    assert result.skipped == ()  # the transformer runs in every step
    halves = 2 * (1 + LATER)
    assert [(step.dense + step.routed, step.skipped) for step in result.steps] == [
        *[(halves, 0)] * 2,
        *[(2, 2 * LATER)] * 2,
    ]
    assert [step.density for step in result.steps] == [1.0, 1.0, *[1 / (1 + LATER)] * 2]


def test_a_step_cache_around_it_is_refused():
    pipe = wan()
    cached(pipe)
    with rainfusion_trt.Pipeline(pipe=pipe, backend="torch", device="cpu", sparsity=0.0) as made:
        with pytest.raises(InvalidInputError, match="cache='easy' and cache-dit on the") as error:
            made(**CALL, seed=0, cache="easy")
        assert "call cache_dit.disable_cache(pipe)" in str(error.value)
        cache_dit.disable_cache(pipe)
        assert made(**CALL, seed=0, cache="easy").cache is not None
