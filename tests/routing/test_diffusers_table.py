"""docs/diffusers.md: a line for all that diffusers has, and a test for each line."""

from __future__ import annotations

import re
from pathlib import Path

import diffusers.hooks
import pytest
from diffusers import WanTransformer3DModel
from diffusers.quantizers.auto import AUTO_QUANTIZER_MAPPING

from tests.helpers.diffusers_caches import cache_kinds
from tests.routing.test_quantised import LAYERS, STOOD_IN_FOR

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs" / "diffusers.md"
# Where each line is shown, by its first cell.
TESTS = {
    **dict.fromkeys(cache_kinds(), "caches: test_steps_are_those_of_diffusers"),
    **dict.fromkeys(
        {*LAYERS, *STOOD_IN_FOR} - {"stand-in"}, "quantised: test_quantised_transformer"
    ),
    "pipe.enable_model_cpu_offload": "diffusers_features: test_model_offloading",
    "pipe.enable_sequential_cpu_offload": "diffusers_features: test_sequential_offloading",
    "transformer.enable_group_offload": "diffusers_features: test_group_offloading",
    "transformer.enable_layerwise_casting": "diffusers_features: test_layerwise_casting",
    "transformer.enable_gradient_checkpointing": (
        "survives: test_training_with_gradient_checkpointing"
    ),
    "transformer.set_attention_backend": "diffusers_features: test_attention_backends",
    "attention.set_processor": "never_dense: test_a_processor_set_after_enable",
    "transformer.enable_xformers_memory_efficient_attention": (
        "never_dense: test_a_processor_that_nobody_knows"
    ),
    "transformer.fuse_qkv_projections": "never_dense: test_fused_projections",
    "apply_layer_skip": "diffusers_features: test_layer_skip",
    "apply_context_parallel": "parallel: test_several_processes_give_what_one_gives",
    "apply_tensor_parallel": (
        "diffusers_features: test_diffusers_has_no_tensor_parallelism_for_these"
    ),
    "transformer.load_lora_adapter": "survives: test_lora_comes_and_goes",
    "transformer.load_lora_adapter(hotswap=True)": "diffusers_features: test_hot_swap_of_a_lora",
    "torch.compile": "compile: test_whole_transformer_is_one_graph_for_all_steps",
    "torch.autocast": "autocast: test_sparsity_0_equals_eager_under_autocast",
    "copy.deepcopy": "survives: test_copies_have_their_own_weights_and_sparsity",
}
# Functions and methods of diffusers whose line has another name.
ELSEWHERE = {
    "apply_group_offloading": "transformer.enable_group_offload",
    "apply_layerwise_casting": "transformer.enable_layerwise_casting",
    "apply_layerwise_casting_hook": "transformer.enable_layerwise_casting",
    "apply_faster_cache": "FasterCacheConfig",
    "apply_first_block_cache": "FirstBlockCacheConfig",
    "apply_mag_cache": "MagCacheConfig",
    "apply_pyramid_attention_broadcast": "PyramidAttentionBroadcastConfig",
    "apply_sea_cache": "SeaCacheConfig",
    "apply_taylorseer_cache": "TaylorSeerCacheConfig",
    "apply_text_kv_cache": "TextKVCacheConfig",
    "enable_adapters": "transformer.load_lora_adapter",
    "enable_cache": "PyramidAttentionBroadcastConfig",
    "enable_lora": "transformer.load_lora_adapter",
    "enable_lora_hotswap": "transformer.load_lora_adapter(hotswap=True)",
    "enable_npu_flash_attention": "transformer.enable_xformers_memory_efficient_attention",
    "enable_parallelism": "apply_context_parallel",
    "enable_xla_flash_attention": "transformer.enable_xformers_memory_efficient_attention",
}


def lines() -> list[str]:
    """First cells of the tables that say what `enable` does."""
    tables = re.findall(
        r"^\| [\w ]+ \| with `enable` \|\n(.*?)\n\n", DOCUMENT.read_text(), re.M | re.S
    )
    rows = [row for table in tables for row in table.splitlines()[1:]]
    cells = [re.match(r"\| `([^`]+)` \| \S", row) for row in rows]
    assert all(cells), rows
    return [cell[1] for cell in cells if cell]


def test_every_line_has_a_test():
    assert sorted(lines()) == sorted(TESTS)
    for test in TESTS.values():
        file, _, function = test.partition(": ")
        assert f"\ndef {function}(" in (HERE / f"test_{file}.py").read_text(), test


@pytest.mark.parametrize("name", cache_kinds())
def test_caches(name):
    assert name in lines()


@pytest.mark.parametrize("name", sorted(AUTO_QUANTIZER_MAPPING))
def test_quantisers(name):
    assert name in lines()


@pytest.mark.parametrize(
    "name", sorted(name for name in dir(diffusers.hooks) if name.startswith("apply_"))
)
def test_hooks(name):
    assert ELSEWHERE.get(name, name) in lines()


@pytest.mark.parametrize(
    "name", sorted(name for name in dir(WanTransformer3DModel) if name.startswith("enable_"))
)
def test_methods(name):
    assert ELSEWHERE.get(name, f"transformer.{name}") in lines()
