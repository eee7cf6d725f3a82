"""An attention that cannot be sparse is an error that names it, or dense with permission."""

from __future__ import annotations

import copy
import logging

import diffusers
import pytest
import torch
import torch.nn.functional as F

import rainfusion_trt
from rainfusion_trt.errors import DenseAttentionError, RainFusionError, UnsupportedError
from rainfusion_trt.models import VideoSize
from rainfusion_trt.routing import routing_of
from tests.helpers.packed_model import Packed, PackedTransformer
from tests.helpers.routed_models import ALL_CLASSES, CLASSES, attentions, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class OwnAttention:
    """A processor that is not diffusers' and calls no attention that anybody could replace."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        other = kwargs.get("encoder_hidden_states")
        return hidden_states if other is None else (hidden_states, other)


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_a_processor_that_nobody_knows(name, caplog):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    block, attention = list(attentions(transformer, model).items())[1]
    attention.set_processor(OwnAttention())
    with pytest.raises(RainFusionError, match=rf"{block}.*OwnAttention.*allow_dense=True"):
        rainfusion_trt.enable(transformer, model=name)
    assert "_rainfusion_routing" not in vars(transformer)
    with caplog.at_level(logging.WARNING):
        routing = rainfusion_trt.enable(
            transformer, model=name, method="rainfusion", allow_dense=True
        )
    assert block in caplog.text
    run(transformer, call)
    assert routing.report().dense == (block,)
    assert routing.routed == len(routing.sites) - 1


@pytest.mark.parametrize("allow_dense", [False, True])
@pytest.mark.parametrize("name", [None, *CLASSES, "kandinsky5-lite"])
def test_a_class_that_no_model_is_of(name, allow_dense):
    """Whatever model it is said to be, and though its attentions have the names of ours."""
    size = {"in_channels": 8, "out_channels": 8, "num_layers": 1, "text_embed_dim": 16}
    heads = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "time_embed_dim": 8,
        "patch_size": 2,
    }
    transformer = diffusers.EasyAnimateTransformer3DModel(**size, **heads)
    before = [module.processor for module in transformer.modules() if hasattr(module, "processor")]
    with pytest.raises(UnsupportedError, match="EasyAnimateTransformer3DModel.*model=") as error:
        rainfusion_trt.enable(transformer, model=name, allow_dense=allow_dense)
    assert "\n" not in str(error.value)
    assert routing_of(transformer) is None and before
    after = [module.processor for module in transformer.modules() if hasattr(module, "processor")]
    assert after == before


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "cogvideox-5b"])
def test_a_processor_set_after_enable(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    sites = attentions(transformer, model)
    original = next(iter(sites.values())).processor
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    block, attention = list(sites.items())[1]
    attention.set_processor(type(original)())
    with pytest.raises(RainFusionError, match=rf"{block}.*disable\(\), then enable\(\) again"):
        run(transformer, call)
    routing.allow_dense = True
    run(transformer, call)
    assert routing.report().dense == (block,)


@pytest.mark.parametrize("whole", [True, False])
def test_a_block_behind_the_others_that_came_after_enable(whole):
    """All others still run; the list may be another one."""
    _, transformer = tiny("wan2.1-1.3b")
    model, other = tiny("wan2.1-1.3b", seed=1)
    call = call_of(model, transformer)
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    if whole:
        transformer.blocks = torch.nn.ModuleList([*transformer.blocks, other.blocks[0]])
    else:
        transformer.blocks.append(other.blocks[0])
    with pytest.raises(DenseAttentionError, match=r"blocks\.2\.attn1 .* came after enable\(\)"):
        run(transformer, call)


@pytest.mark.parametrize("fresh", [True, False])
def test_a_block_that_came_after_enable(fresh):
    """Such as one of another transformer; one that is left out is none."""
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    if not fresh:
        transformer.blocks = transformer.blocks[:1]
        run(transformer, call)
        assert routing.report().skipped == ("blocks.1.attn1",)
        return
    transformer.blocks[1] = tiny("wan2.1-1.3b", seed=1)[1].blocks[0]
    with pytest.raises(DenseAttentionError, match=r"blocks\.1\.attn1 .* came after enable\(\)"):
        run(transformer, call)
    rainfusion_trt.disable(transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    run(transformer, call)
    assert len(routing.report().routed) == 2


def test_one_block_with_another_backend(caplog):
    """Its attention would be RainFusion's against the user's word, or dense without one."""
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
    sparse = run(transformer, call)
    transformer.blocks[1].attn1.set_attention_backend("_native_math")
    with pytest.raises(RainFusionError, match=r"blocks\.1\.attn1.*'_native_math'"):
        run(transformer, call)
    routing.allow_dense = True
    with caplog.at_level(logging.WARNING):
        mixed = run(transformer, call)
        run(transformer, call)
    assert caplog.text.count("blocks.1.attn1") == 1
    assert routing.report() == (("blocks.0.attn1",), ("blocks.1.attn1",), ())
    assert not torch.equal(mixed, sparse) and not torch.equal(mixed, dense)
    transformer.blocks[1].attn1.set_attention_backend("native")
    assert torch.equal(run(transformer, call), sparse)


@pytest.mark.parametrize("before", [True, False])
def test_a_backend_for_the_whole_transformer_leaves_self_attention_sparse(before):
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry as registry

    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    active = registry._active_backend
    try:
        if before:
            transformer.set_attention_backend("_native_math")
        routing = rainfusion_trt.enable(transformer, sparsity=0.7, method="rainfusion")
        transformer.set_attention_backend("_native_math")
        run(transformer, call)
        assert routing.routed == 2
        rainfusion_trt.disable(transformer)
        assert transformer.blocks[0].attn1.processor._attention_backend == "_native_math"
    finally:
        registry.set_active_backend(active)


@pytest.mark.parametrize(
    ("frames", "options"), [(5, {}), (17, {"sink_frames": 5}), (17, {"sink_frames": 4})]
)
def test_too_few_frames(frames, options):
    model, transformer = tiny("cogvideox-5b")
    call = call_of(model, transformer, VideoSize(frames, 64, 96))
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, **options, method="rainfusion")
    with pytest.raises(RainFusionError, match=r"sparsity=0\.7 has no effect.*allow_dense=True"):
        run(transformer, call)
    routing.sparsity = 0.0
    run(transformer, call)
    assert routing.routed == 2
    routing.sparsity, routing.allow_dense = 0.7, True
    run(transformer, call)
    assert routing.routed == 0 and len(routing.report().dense) == 2


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("piecewise", "one window of method 'piecewise'"),
        ("rainfusion2", "every two blocks of method 'rainfusion2'"),
        ("rainfusion_two_way", "every two blocks of method 'rainfusion_two_way'"),
    ],
)
def test_a_clip_of_one_window_or_block(method, words):
    model, transformer = tiny("cogvideox-5b")
    # (3, 4, 6) tokens: 48 beside the sinks, and a window has 128.
    call = call_of(model, transformer, VideoSize(9, 64, 96))
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, method=method)
    with pytest.raises(DenseAttentionError, match=f"has no effect.*{words}.*allow_dense"):
        run(transformer, call)
    routing.allow_dense = True
    run(transformer, call)
    assert routing.routed == 0 and len(routing.report().dense) == 2
    rainfusion_trt.disable(transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.7, method=method)
    run(transformer, call_of(model, transformer, VideoSize(17, 128, 192)))
    assert routing.routed == 2


def test_forward_past_the_call():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    run(transformer, call)
    with torch.no_grad(), pytest.raises(UnsupportedError, match="call the transformer itself"):
        transformer.forward(**call)


def test_no_mask_of_the_users():
    model, transformer = tiny("allegro")
    call = call_of(model, transformer)
    frames, height, width = call["hidden_states"].shape[2:]
    rainfusion_trt.enable(transformer, model="allegro")
    with pytest.raises(UnsupportedError, match=r"blocks\.0\.attn1 has an attention mask"):
        run(transformer, {**call, "attention_mask": torch.ones(1, frames, height, width)})


def test_a_transformer_that_patches_otherwise_than_its_model():
    model, transformer = tiny("hunyuanvideo", patch_size=1)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model="hunyuanvideo")
    torch.testing.assert_close(run(transformer, call), dense, atol=2e-5, rtol=0)
    assert routing.routed == 4


def test_fused_projections():
    model, transformer = tiny("cogvideox-5b")
    call = call_of(model, transformer)
    dense = run(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    transformer.fuse_qkv_projections()
    with pytest.raises(RainFusionError, match="FusedCogVideoXAttnProcessor2_0 after enable"):
        run(transformer, call)
    rainfusion_trt.disable(transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    torch.testing.assert_close(run(transformer, call), dense, atol=2e-5, rtol=0)
    assert routing.routed == 2


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_cross_attention_and_refiners_stay_dense(name):
    """Only self-attention over the video goes to the operator; the rest is diffusers' own."""
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    count = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __init__(self, seen):
            super().__init__()
            self.seen = seen

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is F.scaled_dot_product_attention:
                self.seen.append(func)
            return func(*args, **(kwargs or {}))

    with Watch(count):
        run(transformer, call)
    plain = len(count)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, model=name, method="rainfusion")
    count.clear()
    with Watch(count):
        run(transformer, call)
    assert len(count) == plain - routing.routed
    assert routing.routed == model.attention_count(transformer.config)


def test_by_tokens_is_left_after_an_error():
    """A transformer without diffusers' attention modules; routing it is test_packed_model's."""
    transformer = PackedTransformer()
    model = Packed()
    size = VideoSize(25, 256, 256)
    call = model.forward_kwargs(model.example_inputs(transformer, size, batch=1))
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, model=model, method="rainfusion")
    dense = F.scaled_dot_product_attention(*[torch.ones(1, 1, 256, 8)] * 3)
    with torch.no_grad(), pytest.raises(RuntimeError):
        transformer(**{**call, "hidden_states": call["hidden_states"][:, 1:]})
    assert torch.equal(F.scaled_dot_product_attention(*[torch.ones(1, 1, 256, 8)] * 3), dense)
    assert not torch._C._len_torch_function_stack()
    with torch.no_grad():
        transformer(**call)
    assert routing.report() == (("attention 0",), (), ())
    twin = copy.deepcopy(transformer)
    with torch.no_grad():
        twin(**call)
    assert routing_of(twin).routed == 1
    transformer.forward = lambda *a, **k: (dense,)
    with torch.no_grad(), pytest.raises(DenseAttentionError, match="no self-attention of Packed"):
        transformer(**call)
