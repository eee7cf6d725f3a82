"""Calibration of the rule "mag": what is measured, the file, and who may use it."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from typer.main import get_command
from typer.testing import CliRunner

import rainfusion_trt
from helpers import wan_pipeline
from helpers.parallel_pipelines import wan
from helpers.toy_pipeline import save_toy_pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.step_cache.calibrate import MagnitudeRecorder, calibrate
from rainfusion_trt.step_cache.ratios import MagnitudeRatios, is_ours, read_ratios
from rainfusion_trt.step_cache.settings import CacheSettings

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, backend="torch", device="cpu", sparsity=0.0)
CALL = {
    "num_frames": 25,
    "height": 128,
    "width": 128,
    "num_inference_steps": 6,
    "guidance_scale": 4.0,
    "output_type": "latent",
    "seed": 3,
}


def test_ratios_are_what_numpy_says():
    rng = np.random.default_rng(0)
    inputs, outputs = rng.standard_normal((2, 4, 3, 5)).astype(np.float32)
    recorder = MagnitudeRecorder("residual")
    recorder.scheduled(lambda: (4.0, 3.0, 2.0, 1.0))
    for i, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        if i == 3:
            recorder.reset()  # another transformer
        recorder.ran(i, (torch.from_numpy(x),), (torch.from_numpy(y),))
    lengths = np.sqrt(((outputs - inputs) ** 2).sum(axis=(1, 2)))
    first, second, third, fourth = recorder.ratios()
    assert first is None and fourth is None
    assert (second, third) == pytest.approx(lengths[1:3] / lengths[:2], rel=1e-5)


def test_calibrated_and_used():
    """The ratios are those of the calls that a pipeline makes, and skip what they say."""
    pipe = wan()
    seen: list[float] = []

    def watch(_module, _args, output):
        seen.append(float(output[0].double().norm()))

    hook = pipe.transformer.register_forward_hook(watch)
    with Pipeline(pipe=pipe) as pipeline:
        made = calibrate(pipeline, ["a fox"], **CALL)
        hook.remove()
        lengths = seen[::2]  # first calls
        wanted = [b / a for a, b in zip(lengths, lengths[1:], strict=False)]
        assert made.ratios[0] is None and made.ratios[1:] == pytest.approx(wanted, rel=1e-5)
        assert (made.model, made.scheduler) == ("wan2.1-1.3b", "FlowMatchEulerDiscreteScheduler")
        assert made.timesteps == pytest.approx(pipe.scheduler.timesteps.tolist())
        plain = pipeline("a fox", **CALL)
    with Pipeline(pipe=pipe, cache="mag", cache_threshold=1e9, cache_ratios=made) as pipeline:
        result = pipeline("a fox", **CALL)
        assert result.skipped == (2, 3, 4) and result.cache.rule == "mag"
        same = pipeline("a fox", **CALL, cache_threshold=0.0)
        assert torch.equal(same.frames, plain.frames) and same.skipped == ()
        with pytest.raises(InvalidInputError, match="are of 6 steps of Flow.* run has 4"):
            pipeline("a fox", **{**CALL, "num_inference_steps": 4})
        pipe.scheduler.set_shift(9.0)
        with pytest.raises(InvalidInputError, match="are of timesteps from .* calibrate with its"):
            pipeline("a fox", **CALL)
        assert pipeline("a fox", **CALL, cache="easy").cache.rule == "easy"
    other = replace(made, model="wan2.1-14b")
    with pytest.raises(InvalidInputError, match=r"are of wan2\.1-14b, and the model here is wan2"):
        Pipeline(pipe=pipe, cache="mag", cache_ratios=other)


def test_a_scheduler_that_calls_the_transformer_twice_in_a_step():
    """Heun's has 2 n - 1 timesteps, each of which is a step to a pipeline."""
    pipe = wan()
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()
    call = {**CALL, "num_inference_steps": 4, "guidance_scale": 1.0}
    with Pipeline(pipe=pipe) as pipeline:
        ratios = calibrate(pipeline, ["a fox"], **call)
        cache = CacheSettings("mag", threshold=9.0, ratios=ratios)
        made = pipeline("a fox", cache=cache, **call)
        other = {**call, "num_inference_steps": 7, "cache": cache}
        with pytest.raises(InvalidInputError, match="of 7 steps of FlowMatchHeun") as error:
            pipeline("a fox", **other)
    assert "this run has 13: ask for num_inference_steps=4, or" in str(error.value)
    assert ratios.steps == len(made.steps) == 7 and made.skipped == (2, 3, 4)
    # The service counts steps as requests do, and refuses nothing that a Pipeline makes.
    options = {"model": get_model("wan2.1-1.3b").name, "pipe": pipe, "cache": "mag"}
    worker = PipelineWorker(**options, cache_ratios=ratios)
    said = worker.describe()
    assert (said.cache_steps, said.steps) == (4, 4)
    worker.close()
    with pytest.raises(InvalidInputError, match="for 4 steps, and requests get 7 by default"):
        PipelineWorker(**options, cache_ratios=ratios, defaults={"steps": 7})
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(InvalidInputError, match="the scheduler here is FlowMatchEuler"):
        PipelineWorker(**{**options, "cache": None}, cache_ratios=ratios)


def test_prompts_are_averaged_and_experts_begin_anew():
    model = get_model("wan2.2-a14b")
    config = {**model.config("tiny"), "num_layers": 1}
    experts = [model.create(config, dtype=torch.float32, seed=seed) for seed in (0, 1)]
    pipe = wan_pipeline.tiny_pipeline(experts[0], transformer_2=experts[1], boundary_ratio=0.875)
    with Pipeline(pipe=pipe) as pipeline:
        single = [calibrate(pipeline, [text], **CALL) for text in ("a fox", "two owls")]
        both = calibrate(pipeline, ["a fox", "two owls"], **CALL)
    early = int((pipe.scheduler.timesteps >= 875).sum())
    assert [i for i, ratio in enumerate(both.ratios) if ratio is None] == [0, early]
    assert (both.prompts, both.boundary) == (2, 0.875)
    for mean, one, two in zip(both.ratios, single[0].ratios, single[1].ratios, strict=True):
        assert mean == (None if one is None else pytest.approx((one + two) / 2))
    pipe.config.boundary_ratio = None
    with pytest.raises(InvalidInputError, match=r"boundary_ratio 0\.875, and the pipeline's is"):
        both.check_pipe(SimpleNamespace(scheduler=pipe.scheduler, config={}))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return save_toy_pipeline(tmp_path_factory.mktemp("toy") / "toy", frames=9, height=8, width=8)


def test_the_command(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    common = ("--checkpoint", str(checkpoint), "--model", "cogvideox-5b", "--device", "cpu")
    clip = ("--frames", "9", "--height", "64", "--width", "64", "--sparsity", "0")
    arguments = ("calibrate-cache", *common, *clip, "--prompt", "a", "--prompt", "b", "--steps")
    run = CliRunner().invoke(app, [*arguments, "6"], catch_exceptions=False)
    assert run.exit_code == 0, run.output
    path = tmp_path / "out" / "cache_ratios.json"
    made = read_ratios(path)
    assert (made.steps, made.prompts, made.scheduler) == (6, 2, "CogVideoXDDIMScheduler")
    assert CliRunner().invoke(app, [*arguments, "5"]).exit_code == 0  # its own file
    assert read_ratios(path).steps == 5
    path.write_text(path.read_text().replace('"prompts": 2', '"prompts": 3'))
    refused = CliRunner().invoke(app, [*arguments, "5"])
    assert refused.exit_code == 2 and "not as rainfusion-trt has written it" in refused.output
    film = ("run", *common, *clip, "--prompt", "a", "--profile", "--cache", "mag")
    film += ("--cache-ratios", str(path), "--cache-threshold", "1e9", "--steps", "5")
    shown = CliRunner().invoke(app, film)
    assert shown.exit_code == 0, shown.output
    assert shown.output.count("skipped") >= 3  # of steps 0 to 4: 1, 2 and 3


def test_arguments_that_cannot_be(tmp_path):
    common = ["run", "--prompt", "x", "--checkpoint", "no", "--output", str(tmp_path / "x.mp4")]
    missing, heun = tmp_path / "no.json", tmp_path / "heun.json"
    name, times = FlowMatchHeunDiscreteScheduler.__name__, tuple(map(float, range(7, 0, -1)))
    heun.write_text(MagnitudeRatios("wan2.1-1.3b", name, times, None, (1.0,) * 7).text())
    cases = (
        (["--cache", "tea"], "cache='tea' is not one of off, easy, mag"),
        (["--cache-threshold", "0.1"], "without a cache"),
        (["--cache", "easy", "--cache-threshold", "-1"], "give a number from 0 on"),
        (["--cache", "mag"], "needs calibrated ratios"),
        (["--cache", "mag", "--cache-ratios", str(missing)], "cannot be read"),
        (["--cache", "mag", "--cache-ratios", str(heun), "--steps", "7"], "give --steps 4, or"),
        (["--cache-ratios", str(heun)], "that is mag, and there is none: give --cache mag"),
        (["--cache", "easy", "--cache-ratios", str(heun)], "and this one is easy: give --cache"),
    )
    for more, said in cases:
        result = CliRunner().invoke(app, [*common, *more])
        assert result.exit_code == 2 and said in result.output, result.output


RATIOS = MagnitudeRatios("wan2.1-1.3b", "Fake", (3.0, 2.0, 1.0), None, (None, 1.01, 0.99))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: "no", "are no JSON"),
        (lambda body: json.dumps([body]), "are not of 'rainfusion-trt cache ratios 1'"),
        (lambda body: json.dumps({**body, "format": "x"}), "are not of"),
        (lambda body: json.dumps({**body, "ratios": [None, 1.0]}), "2 ratios for 3 timesteps"),
        (lambda body: json.dumps({**body, "ratios": [None, float("nan"), 1]}), "not finite"),
        (lambda body: json.dumps({**body, "ratios": [None, 10**400, 1.0]}), "not finite"),
        (lambda body: json.dumps({**body, "ratios": [None, -1.0, 1.0]}), "not above 0"),
        (
            lambda body: json.dumps({**body, "ratios": [None, True, 1.0]}),
            r"\(ratios.1=True must be a number\)",
        ),
        (
            lambda body: json.dumps({**body, "prompts": float("inf")}),
            "prompts=inf must be an integer",
        ),
        (lambda body: json.dumps({**body, "timesteps": "321"}), "timesteps='321' must be a list"),
        (
            lambda body: json.dumps({k: v for k, v in body.items() if k != "model"}),
            "model is missing: give it",
        ),
        (
            lambda body: json.dumps({**body, "model": 1, "reuse": None, "ratios": [None, "1", []]}),
            r"model=1 must be a text; ratios\.1='1' must be a number; ratios\.2=\[\] must be a "
            r"number; and 1 more\)",
        ),
    ],
)
def test_files_that_cannot_be(tmp_path, change, said):
    path = tmp_path / "ratios.json"
    path.write_text(RATIOS.text())
    assert read_ratios(path) == RATIOS and is_ours(path)
    path.write_text(change(json.loads(RATIOS.text())))
    assert not is_ours(path)
    with pytest.raises(InvalidInputError, match=said) as error:
        read_ratios(path)
    assert "\n" not in str(error.value) and "calibrate-cache" in str(error.value)


def test_runs_that_they_are_not_of():
    class Fake:
        pass

    pipe = SimpleNamespace(scheduler=Fake(), config={})
    RATIOS.check_pipe(pipe)
    pipe.scheduler = SimpleNamespace()
    with pytest.raises(InvalidInputError, match="the scheduler here is SimpleNamespace"):
        RATIOS.check_pipe(pipe)
    RATIOS.check_steps(3, "ask for 3")
    with pytest.raises(InvalidInputError, match="this run has 4: ask for 3, or write it anew"):
        RATIOS.check_steps(4, "ask for 3")
    RATIOS.check_timesteps((3.0, 2.001, 1.0))
    for other in ((3.0, 2.1, 1.0), (3.0, 2.0)):
        with pytest.raises(InvalidInputError, match="that lie up to"):
            RATIOS.check_timesteps(other)


def test_what_can_be_run_can_be_calibrated():
    """But for what has no part in the steps: the video file, the cache, processes, precision."""
    group = get_command(app)
    of_run, of_calibrate = (
        {parameter.name for parameter in group.commands[name].params}
        for name in ("run", "calibrate-cache")
    )
    cache = {"cache", "cache_threshold", "cache_ratios"}
    steps = {"attention_precision", "first_16bit", "last_16bit"}
    others = {"fps", "vae_tiling", "profile", "allow_fallback"}
    others |= {"gpus", "split_guidance", "overlap", "timeout"}
    assert of_run - of_calibrate == cache | steps | others
