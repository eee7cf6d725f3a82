"""Presets, schedules by sigma and dense layers in `Pipeline`, on a tiny CogVideoX on the CPU."""

from __future__ import annotations

import functools

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from helpers.wan_pipeline import tiny_pipeline as wan_pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.presets import PRESETS, preset_of
from rainfusion_trt.runtime.denoiser import GraphDenoiser
from rainfusion_trt.runtime.schedule import (
    SparsitySchedule,
    choose_schedule,
    foreseen,
    shortfall,
    with_sparsity,
)
from rainfusion_trt.sigma_schedule import NoiseLevels, SigmaSchedule

Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu", backend="torch")
SIZE = VideoSize(frames=37, height=96, width=128)  # with windows that do not all meet
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 4,
    "output_type": "latent",
    "guidance_scale": 1.0,
    "seed": 0,
}


@pytest.fixture
def pipe():
    made = tiny_pipeline(get_model("cogvideox"), size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


def by_sigma(pipe, schedule) -> tuple[float, ...]:
    """The sparsity of every step, from the noise of its timestep alone."""
    sigmas = NoiseLevels.of(pipe.scheduler).sigma(pipe.scheduler.timesteps).tolist()
    return tuple(0.0 if sigma > schedule.dense_above else schedule.peak for sigma in sigmas)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_sets_method_and_schedule(pipe, preset):
    with Pipeline(pipe=pipe, preset=preset) as pipeline:
        output = pipeline(**CALL, profile=True)
        assert pipeline.artifacts.settings.method == PRESETS[preset].method
    wanted = by_sigma(pipe, PRESETS[preset].schedule)
    assert wanted[0] == 0.0 and wanted[-1] > 0.0  # so that both kinds of steps are met
    assert output.sparsity == pytest.approx(wanted)
    assert [row.sparsity for row in output.timings] == pytest.approx(wanted)


def test_what_is_given_goes_before_the_preset(pipe):
    with Pipeline(pipe=pipe, preset="fast", method="rainfusion2", sparsity=0.5) as pipeline:
        assert pipeline.artifacts.settings.method == "rainfusion2"
        schedule = with_sparsity(PRESETS["fast"].schedule, 0.5)
        assert pipeline(**CALL).sparsity == by_sigma(pipe, schedule)
        schedule = with_sparsity(schedule, 0.25)
        assert pipeline(**CALL, sparsity=0.25).sparsity == by_sigma(pipe, schedule)
        assert pipeline(**CALL, sparsity=0.0).sparsity == (0.0,) * 4
        assert pipeline(**CALL, schedule=[0.5] * 4).sparsity == (0.5,) * 4


def test_a_schedule_of_a_call_may_be_by_sigma(pipe):
    pipe.scheduler.set_timesteps(4)
    sigmas = NoiseLevels.of(pipe.scheduler).sigma(pipe.scheduler.timesteps)
    schedule = SigmaSchedule(0.75, dense_above=float(sigmas[1:3].mean()))
    with Pipeline(pipe=pipe) as pipeline:
        output = pipeline(**CALL, schedule=schedule)
    assert output.sparsity == (0.0, 0.0, 0.75, 0.75)


def test_which_schedule_is_chosen():
    fast = preset_of("fast")
    assert choose_schedule(None, None, None, None) == SparsitySchedule(0.5, 0.1)
    assert choose_schedule(None, 0.7, None, None) == SparsitySchedule(0.7, 0.1)
    assert choose_schedule(None, None, 0.3, None) == SparsitySchedule(0.5, 0.3)
    assert choose_schedule(fast, None, None, None) == fast.schedule
    assert choose_schedule(fast, 0.7, None, None) == with_sparsity(fast.schedule, 0.7)
    assert choose_schedule(fast, None, 0.3, None) == SparsitySchedule(0.9, 0.3)
    assert choose_schedule(fast, 0.7, 0.3, [0.1]) == (0.1,)


def test_the_plan_is_said_and_the_scheduler_checked(pipe):
    schedule = PRESETS["balanced"].schedule
    assert foreseen(schedule, pipe, 4) == (schedule, 0.8, "0.8, dense above sigma 0.9")
    assert foreseen([0.0, 0.5], pipe, 2) == ((0.0, 0.5), 0.5, "1 x 0, 1 x 0.5")
    pipe.scheduler.alphas_cumprod = None
    with (
        Pipeline(pipe=pipe, preset="balanced") as pipeline,
        pytest.raises(UnsupportedError, match="does not say how noisy"),
    ):
        pipeline(**CALL)


def test_dense_layers_and_sinks_reach_the_transformer(pipe, monkeypatch):
    seen = []
    operator = torch.ops.rainfusion.attention_measured

    def record(*arguments):
        seen.append((float(arguments[4]), *arguments[-2:]))
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention_measured", record)
    given = {"dense_fraction": 0.0, "dense_layers": (1,)}
    given |= {"sink_frames": 0, "last_sink_frames": 1, "exact_frames": (1,)}
    with Pipeline(pipe=pipe, **given) as pipeline:
        output = pipeline(**CALL)
    assert seen == [(0.5, 1, [1, 2]), (0.0, 1, [1, 2])] * 4  # two layers, four steps
    assert output.sparsity == (0.5,) * 4
    with pytest.raises(InvalidInputError, match="dense_layers has 5"):
        Pipeline(pipe=pipe, dense_layers=(5,))
    assert isinstance(pipe.transformer, torch.nn.Module)
    Pipeline(pipe=pipe).close()  # nothing was left on


def test_an_exported_graph_has_one_sparsity():
    denoiser = object.__new__(GraphDenoiser)
    denoiser.name = "tensorrt"
    denoiser.keep_dense(())
    with pytest.raises(UnsupportedError, match=r"dense_layers=\(0,\) cannot reach an exported"):
        denoiser.keep_dense((0,))


# -- few steps -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wan():
    model = get_model("wan2.1-1.3b")
    return wan_pipeline(model.create(model.config("tiny"), dtype=torch.float32))


@pytest.mark.parametrize(
    ("shift", "dense"),
    [
        (3.0, 1),  # 4 steps at sigmas 1, 0.86, 0.6 and near 0
        (5.0, 2),
        (500.0, 4),
    ],
)
def test_a_distilled_checkpoint_of_few_steps(wan, caplog, shift, dense):
    """At least half of the steps dense is said in one line, with what to do about it."""
    wan.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    with Pipeline(pipe=wan, preset="balanced") as pipeline:
        output = pipeline(**CALL)
    assert output.sparsity == pytest.approx((0.0,) * dense + (0.8,) * (4 - dense))
    said = [record.message for record in caplog.records if "steps are dense" in record.message]
    assert len(said) == (2 * dense >= 4)
    for line in said:
        assert line.startswith(f"{dense} of 4 steps are dense") and "\n" not in line
        assert "dense_fraction=" in line
    caplog.clear()
    with Pipeline(pipe=wan, preset="balanced", dense_fraction=0.25) as pipeline:
        assert pipeline(**CALL).sparsity == (0.0, 0.8, 0.8, 0.8)  # as it advises
    assert "steps are dense" not in caplog.text


def test_what_a_schedule_falls_short_of():
    by_sigma, by_steps = SigmaSchedule(0.8), SparsitySchedule(0.8, dense_fraction=0.1)
    assert shortfall(by_sigma, (0.0,) * 22 + (0.8,) * 28) is None  # HunyuanVideo
    assert shortfall(by_sigma, (0.0,) * 4).startswith("4 of 4 steps are dense")
    assert shortfall(SigmaSchedule(0.0), (0.0,) * 4) is None  # dense, as asked for
    assert shortfall(by_steps, (0.0,)).startswith("1 of 1 steps are dense, by dense_fraction=0.1")
    assert shortfall(by_steps, (0.0, 0.8)) is None
    assert shortfall((0.0, 0.0), (0.0, 0.0)) is None  # each step was chosen


def test_a_wrong_preset_is_named_before_anything_is_loaded():
    with pytest.raises(InvalidInputError, match="preset='best' is not one of quality"):
        Pipeline(preset="best")
