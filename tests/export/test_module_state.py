"""Transformers that are more, or less, than their layers with weights: one line each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model, export_module, exporter, fuse_loras
from rainfusion_trt.export.module_state import check_finite, check_plain
from rainfusion_trt.models import get_model

MODEL = get_model("wan2.1-1.3b")


@pytest.fixture(scope="module")
def plain():
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float32)


@pytest.fixture
def transformer(plain):
    return copy.deepcopy(plain)


def refused(transformer, tmp_path, error, match: str) -> None:
    """By the export and by fusing, before any work."""
    for act in (
        lambda: export_model(MODEL, transformer, MODEL.tiny_size, output=tmp_path / "m.onnx"),
        lambda: fuse_loras(MODEL, transformer, [tmp_path / "style.safetensors"]),
    ):
        with pytest.raises(error, match=match) as caught:
            act()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "m.onnx").exists()


@pytest.fixture(autouse=True)
def _a_lora_that_is_never_read(tmp_path, monkeypatch):
    (tmp_path / "style.safetensors").write_bytes(b"")
    monkeypatch.setattr(exporter, "export_source", lambda *_, **__: pytest.fail("started to work"))


def test_a_plain_transformer_passes(transformer):
    check_plain(transformer)
    check_finite(transformer)


@pytest.mark.parametrize("sequential", [True, False])
def test_offloading_of_accelerate(transformer, tmp_path, sequential):
    from accelerate import cpu_offload, cpu_offload_with_hook
    from accelerate.hooks import remove_hook_from_module

    before = {n: t.clone() for n, t in transformer.state_dict().items()}
    if sequential:
        cpu_offload(transformer, execution_device="cpu")
    else:
        cpu_offload_with_hook(transformer, execution_device="cpu")
    refused(transformer, tmp_path, InvalidInputError, "offloaded by accelerate.*remove_all_hooks")
    remove_hook_from_module(transformer, recurse=True)
    check_plain(transformer)
    torch.testing.assert_close(transformer.state_dict(), before, rtol=0, atol=0)


def test_weights_that_were_never_loaded(transformer, tmp_path):
    refused(
        transformer.to("meta"), tmp_path, InvalidInputError, "no values for .*scale_shift_table"
    )


def test_layerwise_casting(transformer, tmp_path):
    transformer.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
    )
    refused(transformer, tmp_path, InvalidInputError, "layerwise casting on.*load it again")


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading(transformer, tmp_path, offload_type):
    transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_type=offload_type, num_blocks_per_group=1
    )
    refused(transformer, tmp_path, InvalidInputError, "group offloading on.*load it again")


def test_rainfusion_itself(transformer, tmp_path):
    rainfusion_trt.enable(transformer, sparsity=0.5)
    refused(transformer, tmp_path, InvalidInputError, r"RainFusion is on .*disable\(\)")
    rainfusion_trt.disable(transformer)
    check_plain(transformer)


def caches():
    from diffusers import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
    from diffusers.hooks import TaylorSeerCacheConfig

    return [
        FirstBlockCacheConfig(threshold=0.1),
        TaylorSeerCacheConfig(),
        PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
        ),
    ]


@pytest.mark.parametrize("config", caches(), ids=lambda config: type(config).__name__)
def test_a_cache(transformer, tmp_path, config):
    transformer.enable_cache(config)
    name = type(config).__name__
    refused(transformer, tmp_path, InvalidInputError, rf"cache on .{name}.*\.disable_cache\(\)")
    transformer.disable_cache()
    check_plain(transformer)


def test_a_hook_that_nobody_knows(transformer, tmp_path):
    from diffusers.hooks import HookRegistry, ModelHook

    HookRegistry.check_if_exists_or_initialize(transformer.blocks[0]).register_hook(
        ModelHook(), "of_my_own"
    )
    refused(transformer, tmp_path, InvalidInputError, "hook 'of_my_own' on")


def test_parallelism(transformer, tmp_path):
    transformer._parallel_config = object()
    refused(transformer, tmp_path, InvalidInputError, "without enable_parallelism")


def test_weights_of_other_types(transformer, tmp_path):
    linear = transformer.blocks[0].attn1.to_q
    values = linear.weight.data
    linear.weight = nn.Parameter(values.to(torch.float8_e4m3fn), requires_grad=False)
    match = r"blocks\.0\.attn1\.to_q\.weight .float8_e4m3fn"
    refused(transformer, tmp_path, UnsupportedError, match)

    class Packed(nn.Parameter):
        pass

    linear.weight = Packed(values, requires_grad=False)
    refused(transformer, tmp_path, UnsupportedError, "to_q.weight .float32, .*Packed")


def test_a_quantised_transformer_is_named(transformer, tmp_path):
    class Config:
        quant_method = "torchao"

    transformer.hf_quantizer = type("Quantizer", (), {"quantization_config": Config})()
    refused(transformer, tmp_path, UnsupportedError, "quantised with torchao")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_that_are_not_finite_are_named(transformer, tmp_path, value, dtype):
    transformer = transformer.to(dtype)
    transformer.blocks[0].ffn.net[2].weight.data[3, 5] = value
    with pytest.raises(InvalidInputError, match=r"not finite in blocks\.0\.ffn\.net\.2\.weight"):
        export_model(MODEL, transformer, MODEL.tiny_size, output=tmp_path / "m.onnx")


def test_a_module_of_ones_own_is_checked_too(tmp_path):
    module = nn.Linear(4, 4).eval()
    module.weight.data[0, 0] = float("nan")
    with pytest.raises(InvalidInputError, match="not finite in weight"):
        export_module(
            module, {"input": torch.ones(1, 4)}, grid=(1, 2, 2), output=tmp_path / "m.onnx"
        )
