"""Which part of its input each kind of model denoises, and LTX-2 with its two outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.report import CallReport, Moment
from rainfusion_trt.runtime.torch_denoiser import TorchDenoiser
from rainfusion_trt.step_cache.cache import StepCache
from rainfusion_trt.step_cache.settings import CacheSettings

pytestmark = pytest.mark.usefixtures("one_thread")
# Video tokens of the tiny clips are too few to be sparse, so that attention is dense here.
SETTINGS = CacheSettings("easy", threshold=1e9, first=0.1)


def tiny(name: str) -> tuple[Any, Any, dict[str, Any]]:
    model = get_model(name)
    config = model.config("tiny")
    if "num_layers" in config:
        config["num_layers"] = 1
    transformer = model.create(config, dtype=torch.float32)
    inputs = model.example_inputs(transformer, model.tiny_size, batch=1)
    return model, transformer, model.forward_kwargs(inputs)


@pytest.mark.parametrize(
    ("name", "axis", "channels"),
    [
        ("wan2.1-i2v-14b", 1, 16),  # of 36: a mask and the image's latents behind them
        ("cogvideox-5b-i2v", 2, 16),
        ("hunyuanvideo-1.5-i2v", 1, 4),
        ("kandinsky5-lite", 4, 16),
    ],
)
@torch.no_grad()
def test_conditions_beside_the_latents_do_not_count(name, axis, channels):
    model, transformer, call = tiny(name)
    cache = StepCache(SETTINGS, model)
    seen: list[tuple[torch.Tensor, ...]] = []
    saw = cache._rule.saw
    cache._rule.saw = lambda latents: (seen.append(latents), saw(latents))
    given = call["hidden_states"]
    for i in range(4):
        x = given * (1 + i)
        step = {**call, "hidden_states": x}
        run = lambda step=step: transformer(**step)  # noqa: E731
        output, ran = cache.call(transformer, Moment(i, 8, i), step, run, lambda: CallReport(1))
        assert output.sample.shape == seen[-1][0].shape
        assert torch.equal(seen[-1][0], x.narrow(axis, 0, channels))
        assert ran.ran == (i < 2)


@torch.no_grad()
def test_ltx_2_with_guidance_by_a_further_call():
    """One more call a step; every call has video and sound, whose latents here do not move."""
    model, transformer, call = tiny("ltx-2.3")
    perturbed = {**call, "spatio_temporal_guidance_blocks": [0]}
    denoiser = TorchDenoiser(transformer, model, AttentionSettings(), allow_dense=True)
    counted: list[int] = []
    transformer.register_forward_pre_hook(lambda *_: counted.append(step))
    moments = (Moment(i, 6, i) for i in range(6))
    reports: list[CallReport] = []
    given: list[tuple[Any, Any]] = []
    with denoiser.observe(lambda _: moment, reports.append, StepCache(SETTINGS, model)):
        for moment in moments:
            step = moment.step
            moved = {"hidden_states": call["hidden_states"] * (1 + step)}
            both = transformer(**{**call, **moved})
            other = transformer(**{**perturbed, **moved}, return_dict=False)
            given.append((both, other))
    denoiser.close()
    assert counted == [0, 0, 1, 1, 5, 5]
    assert [report.ran for report in reports] == [True] * 4 + [False] * 6 + [True] * 2
    assert {report.skipped for report in reports if not report.ran} == {1}
    (both, other), (kept, kept_other) = given[3], given[1]
    assert type(both) is type(kept) and type(other) is tuple
    for mine, wanted in ((both.to_tuple(), kept.to_tuple()), (other, kept_other)):
        assert all(torch.equal(a, b) for a, b in zip(mine, wanted, strict=True))
    assert not torch.equal(both.sample, other[0])
    assert both.audio_sample.shape == call["audio_hidden_states"].shape
