"""The caches that diffusers can put into a transformer, each so that it skips within few steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers.hooks
import torch
from diffusers.models.cache_utils import CacheMixin


def cache_config(kind: str, step: Callable[[], int]) -> Any:
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
NOTHING_FOR_WAN = {"TextKVCacheConfig"}


def cache_kinds() -> list[str]:
    """Every configuration that CacheMixin.enable_cache asks for; a new one fails here first."""
    source = inspect.getsource(CacheMixin.enable_cache)
    body = source.partition('"""')[2].partition('"""')[2]
    return sorted(name for name in dir(diffusers.hooks) if name.endswith("Config") and name in body)
