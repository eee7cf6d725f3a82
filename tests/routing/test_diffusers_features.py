"""What diffusers offers beside RainFusion: at sparsity 0 as without it, above 0 sparse.

Each is turned on before and after `enable`. docs/diffusers.md has the whole list.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import torch._dynamo
from diffusers.hooks import LayerSkipConfig, apply_layer_skip
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from peft import LoraConfig
from torch import nn
from torch._dynamo.utils import counters

import rainfusion_trt
from tests.helpers.routed_models import ALL_CLASSES, CLASSES, assert_same, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BEFORE_AND_AFTER = pytest.mark.parametrize("first", ["feature", "enable"])


def check(name: str, feature: Callable[[nn.Module], Any], first: str, *, skipped: int = 0) -> None:
    """`feature` changes a transformer with RainFusion as it does one without."""
    model, plain = tiny(name)
    call = call_of(model, plain)
    feature(plain)
    dense = run(plain, call)
    _, transformer = tiny(name)
    if first == "feature":
        feature(transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=name, method="rainfusion")
    if first == "enable":
        feature(transformer)
    assert_same(name, run(transformer, call), dense)
    routing.sparsity = 0.7
    for _ in range(3):
        assert (run(transformer, call) - dense).abs().max() > 1e-4
        assert routing.routed == len(routing.sites) - skipped
        assert len(routing.report().skipped) == skipped


@BEFORE_AND_AFTER
@pytest.mark.parametrize("name", ALL_CLASSES)
def test_layerwise_casting(name, first):
    def cast(transformer):
        transformer.enable_layerwise_casting(
            storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32
        )
        stored = {p.dtype for p in transformer.parameters()}
        assert torch.float8_e4m3fn in stored

    check(name, cast, first)


@BEFORE_AND_AFTER
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind, first):
    def offload(transformer):
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        transformer.enable_group_offload(
            onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks
        )

    check("wan2.1-1.3b", offload, first)


@BEFORE_AND_AFTER
def test_sequential_offloading(first):
    """What pipe.enable_sequential_cpu_offload() does to each of its models."""

    def offload(transformer):
        accelerate.cpu_offload(transformer, execution_device=CPU)
        assert next(transformer.parameters()).is_meta

    check("wan2.1-1.3b", offload, first)


@BEFORE_AND_AFTER
def test_model_offloading(first):
    """What pipe.enable_model_cpu_offload() does to each of its models."""
    check(
        "wan2.1-1.3b",
        lambda transformer: accelerate.cpu_offload_with_hook(transformer, execution_device=CPU),
        first,
    )


@BEFORE_AND_AFTER
def test_layer_skip(first):
    """Skip-layer guidance; diffusers can skip blocks of these classes, and attention of none."""
    config = LayerSkipConfig(indices=[1], fqn="blocks")
    check("wan2.1-1.3b", lambda t: apply_layer_skip(t, config), first, skipped=1)
    _, transformer = tiny("wan2.1-1.3b")
    alone = LayerSkipConfig(indices=[1], fqn="blocks", skip_ff=False)
    for turn_on in (lambda: None, lambda: rainfusion_trt.enable(transformer)):
        turn_on()
        with pytest.raises(ValueError, match="not registered"):
            apply_layer_skip(transformer, alone)


def usable_backends() -> list[str]:
    """Attention backends that diffusers lets a transformer have on this machine."""
    active = _AttentionBackendRegistry._active_backend
    _, transformer = tiny("wan2.1-1.3b", num_layers=1)
    usable = []
    for backend in AttentionBackendName:
        try:
            transformer.set_attention_backend(backend.value)
        except Exception:  # each has its own way to say that it cannot run here
            continue
        usable.append(backend.value)
    _AttentionBackendRegistry.set_active_backend(active)
    return usable


@BEFORE_AND_AFTER
def test_attention_backends(first):
    """Chosen for the whole transformer, a backend is cross-attention's and the text's."""
    usable = usable_backends()
    assert {"native", "_native_math"} <= set(usable)
    active = _AttentionBackendRegistry._active_backend
    try:
        for backend in usable:
            model, transformer = tiny("wan2.1-1.3b")
            call = call_of(model, transformer)
            if first == "feature":
                transformer.set_attention_backend(backend)
            routing = rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
            if first == "enable":
                transformer.set_attention_backend(backend)
            if backend in ("native", "_native_math"):  # others need no GPU to be chosen, but to run
                run(transformer, call)
                assert routing.routed == 2
            names = {site.processor.backend_name() for site in routing.sites}
            assert names == {backend}
    finally:
        _AttentionBackendRegistry.set_active_backend(active)


def lora(folder: Path, seed: int) -> Path:
    """A LoRA file for the tiny Wan."""
    _, transformer = tiny("wan2.1-1.3b")
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    transformer.add_adapter(config, adapter_name="style")
    transformer.save_lora_adapter(folder / str(seed), adapter_name="style")
    return folder / str(seed) / "pytorch_lora_weights.safetensors"


@pytest.mark.parametrize("compiled", [False, True])
def test_hot_swap_of_a_lora(tmp_path, compiled):
    files = [lora(tmp_path, seed) for seed in (1, 2)]

    def outputs(enabled: bool) -> list[torch.Tensor]:
        torch._dynamo.reset()
        counters.clear()
        model, transformer = tiny("wan2.1-1.3b")
        call = call_of(model, transformer)
        if compiled:
            transformer.enable_lora_hotswap(target_rank=4)
        found, graphs = [], []
        for index, file in enumerate(files):
            transformer.load_lora_adapter(file, prefix=None, adapter_name="a", hotswap=index > 0)
            if index == 0:
                routing = (
                    rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
                    if enabled
                    else None
                )
                if compiled:
                    transformer.compile(backend="eager", fullgraph=True)
            found.append(run(transformer, call))
            if routing is not None:
                routing.sparsity = 0.7
                assert (run(transformer, call) - found[-1]).abs().max() > 1e-4
                assert routing.routed == 2
                routing.sparsity = 0.0
            graphs.append(counters["stats"]["unique_graphs"])
        assert graphs[0] == graphs[1]  # swapping compiles nothing
        return found

    right = outputs(enabled=False)
    assert (right[0] - right[1]).abs().max() > 1e-3
    for actual, wanted in zip(outputs(enabled=True), right, strict=True):
        torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_diffusers_has_no_tensor_parallelism_for_these(name):
    """Where it gets a plan for one, the table in docs/diffusers.md has to say what happens."""
    _, transformer = tiny(name)
    assert transformer._tp_plan is None


@pytest.mark.parametrize("name", CLASSES)
def test_classes_with_a_plan_for_context_parallelism(name):
    _, transformer = tiny(name)
    assert (transformer._cp_plan is not None) == (name == "wan2.1-1.3b")
