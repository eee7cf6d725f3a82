"""What users do to a transformer after, or before, `enable`: it stays sparse, with its weights."""

from __future__ import annotations

import copy
import functools
import io
import pickle

import accelerate
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.routing import routing_of
from tests.helpers.routed_models import ALL_CLASSES, assert_same, attentions, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=ALL_CLASSES)
def case(request):
    model, transformer = tiny(request.param)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.7, model=request.param, method="rainfusion"
    )
    sparse = run(transformer, call)
    assert (sparse - dense).abs().max() > 1e-4
    return model, transformer, call, dense, sparse, routing


def test_off_is_as_it_was(case):
    model, transformer, call, dense, _, _ = case
    rainfusion_trt.disable(transformer)
    assert torch.equal(run(transformer, call), dense)
    assert not any("rainfusion" in name for m in transformer.modules() for name in vars(m))
    assert not transformer._forward_pre_hooks and not transformer._forward_hooks
    processors = [m.processor for m in attentions(transformer, model).values()]
    assert all(type(p).__module__.startswith("diffusers.") for p in processors)


def test_hooks_that_are_renewed(case):
    """As enable_model_cpu_offload does after every generation: sparse, sparse, sparse."""
    _, transformer, call, _, sparse, routing = case
    for _ in range(3):
        remove_hook_from_module(transformer, recurse=True)
        add_hook_to_module(transformer, ModelHook(), append=True)
        assert torch.equal(run(transformer, call), sparse)
        assert len(routing.report().routed) == len(routing.sites)


def test_hooks_before_enable_that_go():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    add_hook_to_module(transformer, ModelHook())
    rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    sparse = run(transformer, call)
    remove_hook_from_module(transformer, recurse=True)
    assert torch.equal(run(transformer, call), sparse)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_copies_have_their_own_weights_and_sparsity(case, how):
    model, transformer, call, _, sparse, routing = case
    if how == "deepcopy":
        twin = copy.deepcopy(transformer)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(transformer))
    else:
        file = io.BytesIO()
        torch.save(transformer, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert torch.equal(run(twin, call), sparse)
    own = routing_of(twin)
    assert own is not routing and own.routed == len(own.sites)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert not torch.equal(run(twin, call), sparse)
    assert torch.equal(run(transformer, call), sparse)
    own.sparsity = 0.0
    assert routing.sparsity == 0.7 and torch.equal(run(transformer, call), sparse)
    rainfusion_trt.disable(twin)
    assert torch.equal(run(transformer, call), sparse)


SHARES = r"this \w+ shares its blocks with .* copy\.deepcopy"


def test_a_shallow_copy_of_one_that_is_enabled(case):
    """It has the same blocks, so that both are sparse or none is."""
    _, transformer, call, dense, sparse, routing = case
    twin = copy.copy(transformer)
    assert torch.equal(run(twin, call), sparse) and routing_of(twin) is routing
    with pytest.raises(InvalidInputError, match=SHARES):
        rainfusion_trt.disable(twin)
    assert torch.equal(run(transformer, call), sparse) and routing_of(transformer) is routing
    rainfusion_trt.disable(transformer)
    assert torch.equal(run(transformer, call), dense) and torch.equal(run(twin, call), dense)
    assert routing_of(twin) is None
    with pytest.raises(InvalidInputError, match="RainFusion is not on"):
        rainfusion_trt.disable(twin)
    # The other way round: what is on is the copy's now.
    rainfusion_trt.enable(twin, sparsity=0.7, method="rainfusion")
    assert torch.equal(run(twin, call), sparse)
    for another in (lambda: rainfusion_trt.enable(transformer), lambda: run(transformer, call)):
        with pytest.raises(InvalidInputError, match=SHARES):
            another()
    rainfusion_trt.disable(twin)
    assert torch.equal(run(transformer, call), dense)


def test_a_shallow_copy_of_before(case):
    _, transformer, call, dense, sparse, _ = case
    rainfusion_trt.disable(transformer)
    twin = copy.copy(transformer)
    rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    with pytest.raises(InvalidInputError, match=SHARES):
        run(twin, call)
    with pytest.raises(InvalidInputError, match="not on"):
        rainfusion_trt.disable(twin)
    deep = copy.deepcopy(transformer)
    rainfusion_trt.disable(transformer)
    assert torch.equal(run(twin, call), dense) and torch.equal(run(deep, call), sparse)
    rainfusion_trt.disable(deep)
    assert torch.equal(run(deep, call), dense)


def test_cpu_offload_of_accelerate_then_enable():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    dense = run(transformer, call)
    accelerate.cpu_offload(transformer, execution_device=torch.device("cpu"))
    assert next(transformer.parameters()).is_meta
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    torch.testing.assert_close(run(transformer, call), dense, atol=2e-5, rtol=0)
    routing.sparsity = 0.7
    assert (run(transformer, call) - dense).abs().max() > 1e-4 and routing.routed == 2


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_enable_where_the_weights_are_still_on_the_meta_device(name, tmp_path, monkeypatch):
    """As diffusers constructs a transformer in from_pretrained."""
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    transformer.save_pretrained(tmp_path)
    kind = type(transformer)
    construct = kind.__init__
    devices = []

    @functools.wraps(construct)
    def enabled(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        devices.append(next(self.parameters()).device.type)
        rainfusion_trt.enable(self, sparsity=0.0, model=name)

    monkeypatch.setattr(kind, "__init__", enabled)
    loaded = kind.from_pretrained(tmp_path)
    assert devices == ["meta"]
    assert_same(name, run(loaded, call), dense)
    assert routing_of(loaded).routed == model.attention_count(transformer.config)
    with torch.device("meta"):
        assert not routing_of(kind.from_config(transformer.config)).sparsity_tensor.is_meta


def test_a_forward_on_the_meta_device_leaves_the_sparsity():
    """As one that asks for shapes only."""
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    sparse = run(transformer, call)
    shapes = copy.deepcopy(transformer).to("meta")
    routing_of(shapes).sparsity = 0.6
    on_meta = {k: v.to("meta") if torch.is_tensor(v) else v for k, v in call.items()}
    assert run(shapes, on_meta).is_meta
    assert routing_of(shapes).sparsity_tensor.item() == pytest.approx(0.6)
    assert torch.equal(run(transformer, call), sparse) and routing.sparsity == 0.7


def test_layerwise_casting_and_group_offloading():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    torch.testing.assert_close(run(transformer, call), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2


def test_dynamic_quantisation():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    quantised = torch.ao.quantization.quantize_dynamic(transformer, {"blocks.0.attn1.to_q"})
    assert "Quantized" in str(quantised.blocks[0].attn1.to_q)
    run(quantised, call)
    assert routing_of(quantised).routed == 2


def test_under_inference_mode_then_not():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    with torch.inference_mode():
        routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
        run(transformer, call)
    routing.sparsity = 0.2
    run(transformer, call)


def test_lora_comes_and_goes():
    from peft import LoraConfig

    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    sparse = run(transformer, call)
    config = LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    transformer.add_adapter(config, adapter_name="style")
    assert not torch.equal(run(transformer, call), sparse) and routing.routed == 2
    transformer.disable_adapters()
    assert torch.equal(run(transformer, call), sparse)


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_training_with_gradient_checkpointing(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    transformer.train().requires_grad_(True)
    sites = attentions(transformer, model)
    weights = [next(m.parameters()) for m in sites.values()]

    def gradients():
        loss = transformer(**call, return_dict=False)[0].square().mean()
        return torch.autograd.grad(loss, weights)

    right = gradients()
    rainfusion_trt.enable(transformer, sparsity=0.0, model=name)
    plain = gradients()
    transformer.enable_gradient_checkpointing()
    for actual in (plain, gradients()):
        for a, b in zip(actual, right, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-3)
