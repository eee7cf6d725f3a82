"""`enable` with presets, schedules by sigma, and layers that stay dense."""

from __future__ import annotations

import copy

import diffusers
import pytest
import torch
from torch._dynamo.utils import counters

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.presets import PRESETS
from rainfusion_trt.sigma_schedule import SigmaSchedule
from tests.helpers.routed_models import call_of, run, tiny

FLOW = diffusers.FlowMatchEulerDiscreteScheduler()
FALLING = SigmaSchedule(((0.25, 0.5), (0.75, 0.75)), dense_above=0.9)


@pytest.fixture
def seen(monkeypatch):
    """The sparsity of every attention, in their order."""
    found = []
    operator = torch.ops.rainfusion.attention

    def record(*arguments):
        found.append(float(arguments[4]))
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    return found


def at(call, timestep):
    return {**call, "timestep": torch.full_like(call["timestep"], timestep)}


def test_a_schedule_follows_the_timestep(seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(
        transformer, schedule=FALLING, scheduler=FLOW, method="rainfusion"
    )
    assert routing.sparsity == 0.75
    for timestep, sparsity in ((950, 0.0), (750, 0.75), (500, 0.625), (250, 0.5), (0, 0.5)):
        seen.clear()
        run(transformer, at(call, timestep))
        assert seen and seen == [sparsity] * len(seen), timestep


def test_setting_the_sparsity_ends_the_schedule(seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(
        transformer, schedule=FALLING, scheduler=FLOW, method="rainfusion"
    )
    run(transformer, at(call, 500))
    routing.sparsity = 0.25
    seen.clear()
    run(transformer, at(call, 500))
    assert set(seen) == {0.25}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_set_method_and_schedule(preset, seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, preset=preset, scheduler=FLOW)
    wanted = PRESETS[preset]
    assert routing.settings.method == wanted.method
    run(transformer, at(call, 950))
    assert set(seen) == {0.0}
    seen.clear()
    run(transformer, at(call, 300))
    assert seen == pytest.approx([wanted.schedule.peak] * len(seen))


def test_what_is_given_goes_before_the_preset(seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(
        transformer, preset="fast", scheduler=FLOW, method="rainfusion2", sparsity=0.5
    )
    assert routing.settings.method == "rainfusion2"
    run(transformer, at(call, 950))
    assert set(seen) == {0.0}
    seen.clear()
    run(transformer, at(call, 300))
    assert set(seen) == {0.5}


def test_layers_stay_dense(seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.5, dense_layers=(0,), method="rainfusion"
    )
    run(transformer, call)
    assert seen == [0.0] + [0.5] * (len(seen) - 1) and len(seen) > 1
    assert routing.report().routed and not routing.report().dense
    seen.clear()
    routing.dense_layers = (len(routing.sites) - 1,)
    run(transformer, call)
    assert seen == [0.5] * (len(seen) - 1) + [0.0]


def test_a_copy_has_schedule_and_layers(seen):
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    rainfusion_trt.enable(
        transformer, schedule=FALLING, scheduler=FLOW, dense_layers=(1,), method="rainfusion"
    )
    run(transformer, at(call, 500))
    seen.clear()
    run(copy.deepcopy(transformer), at(call, 750))
    assert seen == [0.75, 0.0, *seen[2:]]


def test_attentions_found_by_tokens_have_dense_layers():
    from rainfusion_trt.models import AttentionLayout
    from rainfusion_trt.routing import AttentionRoute, RainFusionSettings

    q, k, v = torch.randn(3, 1, 2, 4 * 9 * 15, 16).unbind(0)
    layout = AttentionLayout(grid=q.new_empty(4, 9, 15), text="none", text_tokens=0, kv_len=None)
    sparsity = torch.tensor([0.8])
    settings = RainFusionSettings("rainfusion2")
    route = AttentionRoute(layout, sparsity, settings, dense_layers=(1,))
    with route:
        outputs = [torch.nn.functional.scaled_dot_product_attention(q, k, v) for _ in range(3)]
    dense, sparse = (
        rainfusion_attention(q, k, v, (4, 9, 15), sparsity=s, method="rainfusion2")
        for s in (0.0, 0.8)
    )
    assert torch.equal(outputs[0], sparse) and torch.equal(outputs[2], sparse)
    assert torch.equal(outputs[1], dense) and not torch.equal(dense, sparse)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"preset": "fast"}, InvalidInputError, "scheduler=pipe.scheduler"),
        ({"schedule": FALLING}, InvalidInputError, "scheduler=pipe.scheduler"),
        ({"scheduler": FLOW}, InvalidInputError, "scheduler= goes with preset="),
        (
            {"schedule": FALLING, "sparsity": 0.5, "scheduler": FLOW},
            InvalidInputError,
            "not both",
        ),
        ({"preset": "best", "scheduler": FLOW}, InvalidInputError, "preset='best'"),
        (
            {"preset": "fast", "scheduler": diffusers.EDMEulerScheduler()},
            UnsupportedError,
            "EDMEulerScheduler",
        ),
        ({"dense_layers": (-1,)}, InvalidInputError, "dense_layers has -1"),
        ({"dense_layers": (99,)}, InvalidInputError, "dense_layers has 99, and this .* 0 to"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_routed(arguments, kind, words):
    model, transformer = tiny("wan2.1-1.3b")
    before = dict(transformer.attn_processors)
    with pytest.raises(kind, match=words):
        rainfusion_trt.enable(transformer, **arguments)
    assert transformer.attn_processors == before
    rainfusion_trt.enable(transformer)  # it is not on


@pytest.mark.usefixtures("one_thread")
def test_a_compiled_transformer_follows_it_and_compiles_nothing_anew():
    torch._dynamo.reset()
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    rainfusion_trt.enable(
        transformer, schedule=FALLING, scheduler=FLOW, dense_layers=(0,), method="rainfusion"
    )
    expected = [run(transformer, at(call, timestep)) for timestep in (950, 500, 250)]
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    run(compiled, at(call, 100))
    before = counters["stats"]["unique_graphs"]
    for timestep, wanted in zip((950, 500, 250), expected, strict=True):
        # The same operations, of which a graph may fold constants.
        torch.testing.assert_close(run(compiled, at(call, timestep)), wanted, atol=2e-5, rtol=0)
    assert counters["stats"]["unique_graphs"] == before > 0
    torch._dynamo.reset()
