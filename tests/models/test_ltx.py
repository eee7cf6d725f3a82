"""LTX-Video and LTX-2 in the registry and under `enable`, as tiny models on the CPU."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo
from torch import nn

import rainfusion_trt
from helpers.ltx_models import LARGE, NAMES, call_of, errors, run, tiny
from rainfusion_trt.errors import DenseAttentionError
from rainfusion_trt.models import VideoSize, get_model, model_of

pytestmark = pytest.mark.usefixtures("one_thread")

# Billions of parameters, as in the names of the published checkpoints (the 22 of LTX-2.3 count more
# than the transformer, which its gates and modulation hardly change), and (T, H, W) at the
# standard sizes.
FULL = {
    "ltx-video-2b": (2, (21, 16, 22)),
    "ltx-video-13b": (13, (21, 16, 22)),
    "ltx-2": (19, (16, 16, 24)),
    "ltx-2.3": (19, (16, 16, 24)),
}
# Two float32 softmaxes that sum up to 448 keys in another order, through two layers.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_full_size_is_the_published_one(name):
    model = get_model(name)
    billions, grid = FULL[name]
    with torch.device("meta"):
        transformer = model.diffusers_class()(**model.config())
    assert round(sum(p.numel() for p in transformer.parameters()) / 1e9) == billions
    assert model.attention_count(transformer.config) == len(transformer.transformer_blocks)
    assert model_of(transformer) is model
    extents = model.extents(transformer.config, model.defaults.size, 1)
    assert tuple(extents[f"grid_{axis}"] for axis in ("frames", "height", "width")) == grid
    assert extents["packed_tokens"] == model.sequences["packed_tokens"] == math.prod(grid)


@pytest.mark.parametrize("name", NAMES)
def test_zero_sparsity_is_dense_and_half_is_not(name):
    """With a timestep of 0 for the first tokens; also one row or column of tokens."""
    model, transformer = tiny(name)
    sizes = ((LARGE, 1), (VideoSize(25, 32, 256), 2), (VideoSize(25, 128, 32), 1))
    calls = [call_of(model, transformer, size, batch) for size, batch in sizes]
    dense = [run(transformer, call) for call in calls]
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    for call, right in zip(calls, dense, strict=True):
        assert max(errors(run(transformer, call), right)) < TOLERANCE
    routing.sparsity = 0.5
    sparse = run(transformer, calls[0])
    assert all(torch.isfinite(sample).all() for sample in sparse)
    assert (sparse[0] - dense[0][0]).abs().max() > 1e-2
    # Of the blocks' up to six attentions only that of the video over itself.
    names = tuple(f"transformer_blocks.{i}.attn1" for i in range(2))
    report = routing.report()
    assert (report.routed, report.dense, report.skipped) == (names, (), ())
    rainfusion_trt.disable(transformer)
    assert all(torch.equal(a, b) for a, b in zip(run(transformer, calls[0]), dense[0], strict=True))


@pytest.mark.parametrize("name", ["ltx-video-2b", "ltx-2.3"])
def test_compiles_to_one_graph_for_all_steps(name):
    from torch._dynamo.utils import counters

    model, transformer = tiny(name, num_layers=1)
    call = call_of(model, transformer, LARGE)
    routing = rainfusion_trt.enable(transformer, sparsity=0.6, method="rainfusion")
    expected = run(transformer, call)
    torch._dynamo.reset()
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    assert max(errors(run(compiled, call), expected)) < TOLERANCE
    graphs = counters["stats"]["unique_graphs"]
    for sparsity in (0.0, 0.5):
        routing.sparsity = sparsity
        run(compiled, {**call, "timestep": call["timestep"] - 1})
    assert counters["stats"]["unique_graphs"] == graphs and routing.routed == 1
    torch._dynamo.reset()


def test_options_of_ltx_2_are_those_of_diffusers():
    """Interleaved rotary embeddings, no biases, marks of keyframes (LTX-2.5)."""
    options = {"rope_type": "interleaved", "ff_bias": False}
    model, transformer = tiny("ltx-2.3", **options, use_keyframes_abs_pos_embedding=True)
    nn.init.normal_(transformer.keyframes_abs_pos_embedding)
    call = call_of(model, transformer, model.tiny_size)
    call["video_keyframes_mask"] = torch.zeros(1, 72, 1).index_fill_(1, torch.arange(24), 1.0)
    dense = run(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    assert max(errors(run(transformer, call), dense)) < TOLERANCE
    assert model_of(transformer) is model


@pytest.mark.parametrize("mask", [None, torch.tensor([0.0, 1.0])], ids=["all", "some"])
def test_guidance_without_attention_in_a_block(mask):
    """Spatio-temporal guidance puts the values in the place of attention: none is dense then."""
    model, transformer = tiny("ltx-2.3")
    call = call_of(model, transformer, model.tiny_size, batch=2)
    call.update(spatio_temporal_guidance_blocks=[1], perturbation_mask=mask)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    assert max(errors(run(transformer, call), dense)) < TOLERANCE
    report = routing.report()
    names = tuple(f"transformer_blocks.{i}.attn1" for i in range(2))
    assert (report.routed, report.dense) == (names[:1] if mask is None else names, ())
    assert report.skipped == (names[1:] if mask is None else ())


def test_a_mask_over_the_video_leaves_nothing_sparse():
    model, transformer = tiny("ltx-2")
    call = call_of(model, transformer, model.tiny_size)
    call["video_self_attention_mask"] = (torch.rand(1, 72, 72) > 0.3).float()
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    with pytest.raises(DenseAttentionError, match="video_self_attention_mask.*allow_dense=True"):
        run(transformer, call)
    routing.allow_dense = True
    assert all(torch.equal(a, b) for a, b in zip(run(transformer, call), dense, strict=True))
    assert len(routing.report().dense) == 2
    routing.allow_dense = False
    del call["video_self_attention_mask"]
    run(transformer, call)
    assert routing.routed == 2
