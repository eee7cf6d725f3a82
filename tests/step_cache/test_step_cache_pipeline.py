"""`Pipeline(cache=...)`: whole tiny pipelines, whose skipped steps call no transformer."""

from __future__ import annotations

import functools
import threading
from typing import Any

import pytest
import torch
from diffusers import MagCacheConfig
from diffusers.hooks import apply_mag_cache

import rainfusion_trt
from helpers import wan_pipeline
from helpers.parallel_pipelines import cogvideox, wan
from rainfusion_trt import CacheSettings, ParallelConfig
from rainfusion_trt.errors import GenerationCancelled, InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.step_cache.others import other_cache
from tests.helpers.diffusers_caches import NOTHING_FOR_WAN, cache_config, cache_kinds
from tests.helpers.process_group import in_processes
from tests.helpers.routed_models import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(  # piecewise would have too few windows of clips as small as these
    rainfusion_trt.Pipeline,
    backend="torch",
    device="cpu",
    method="rainfusion",
    sparsity=0.6,
    dense_fraction=0.3,
)
CALL = {
    "prompt": "a fox",
    "num_frames": 25,
    "height": 128,
    "width": 128,
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "output_type": "latent",
    "seed": 3,
}
ANY = 1e9  # a threshold below which everything stays
SKIPPED = (2, 3, 4, 6)  # of 8 then: two run, three are skipped in a row, the last runs


class Counted:
    """How often transformers are called while they are watched."""

    def __init__(self, *transformers: torch.nn.Module) -> None:
        self.calls = 0
        for transformer in transformers:
            transformer.register_forward_pre_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.mark.parametrize(("make", "calls"), [(wan, 2), (cogvideox, 1)], ids=["two calls", "batch"])
def test_skipped_steps_call_no_transformer(make, calls):
    pipe = make()
    counted = Counted(pipe.transformer)
    told: list[int] = []
    ends: list[int] = []

    def end(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(step)
        return tensors

    watch = {"progress": lambda done, _: told.append(done), "callback_on_step_end": end}
    with Pipeline(pipe=pipe) as pipeline:
        plain = pipeline(**CALL)
        assert counted.calls == 8 * calls and plain.skipped == ()
        never = pipeline(**CALL, cache="easy", cache_threshold=0.0)
        assert torch.equal(never.frames, plain.frames)
        assert never.steps == plain.steps and counted.calls == 16 * calls
        cached = pipeline(**CALL, cache="easy", cache_threshold=ANY, profile=True, **watch)
        assert counted.calls == 20 * calls
        again = pipeline(**CALL, cache="easy", cache_threshold=ANY)
        assert torch.equal(again.frames, cached.frames) and again.steps == cached.steps
        assert torch.equal(pipeline(**CALL).frames, plain.frames)
    assert cached.skipped == SKIPPED and not torch.equal(cached.frames, plain.frames)
    # What was added is nearly that of the step before: near the clip of all steps.
    assert (cached.frames - plain.frames).norm() < 0.5 * plain.frames.norm()
    assert told == list(range(9)) and ends == list(range(8))
    for step, row, dense in zip(cached.steps, cached.timings, plain.steps, strict=True):
        assert (step.step, row.ran, row.density) == (dense.step, step.ran, step.density)
        assert step.ran == (step.step not in SKIPPED)
        whole = dense.routed + dense.dense
        if step.ran:
            assert (step.routed, step.dense, step.skipped) == (dense.routed, dense.dense, 0)
        else:
            assert (step.routed, step.dense, step.skipped) == (0, 0, whole)
            assert (step.density, step.sparsity) == (0.0, 0.0)
    shares = [step.density for step in cached.steps]
    assert cached.density == pytest.approx(sum(shares) / 8) and cached.density < 0.5


def test_guidance_that_a_callback_switches():
    """In a step that is skipped, its second half has nothing of the last step that ran."""
    pipe = wan()

    def end(pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step == 4 else 4.0  # off in step 5
        return tensors

    with Pipeline(pipe=pipe) as pipeline:
        made = pipeline(**CALL, cache="easy", cache_threshold=ANY, callback_on_step_end=end)
    assert "cache_context" not in vars(pipe.transformer)
    assert made.skipped == SKIPPED[:-1]
    half = made.steps[6]
    assert half.skipped == half.routed + half.dense > 0


def test_cancelled_in_a_skipped_step_leaves_nothing_behind():
    flag = threading.Event()

    def cancel(done: int, _steps: int) -> None:
        if done == 3:  # step 2 was skipped
            flag.set()

    pipe = wan()
    with Pipeline(pipe=pipe, cache="easy", cache_threshold=ANY) as pipeline:
        first = pipeline(**CALL)
        with pytest.raises(GenerationCancelled, match="after 3 steps"):
            pipeline(**CALL, progress=cancel, cancel=flag)
        assert "_compiled_call_impl" not in pipe.transformer.__dict__
        second = pipeline(**CALL)
        assert torch.equal(first.frames, second.frames) and second.skipped == SKIPPED
        assert pipeline(**CALL, cache="off").skipped == ()


@pytest.mark.parametrize("how", ["torch.compile", "compile()"])
def test_a_compiled_transformer(how):
    pipe = wan()
    if how == "compile()":
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with Pipeline(pipe=pipe) as pipeline:
        call = {**CALL, "num_inference_steps": 4}
        assert pipeline(**call, cache="easy", cache_threshold=ANY).skipped == (2,)
        assert pipeline(**call).skipped == ()


def test_two_experts_have_a_state_each():
    model = get_model("wan2.2-a14b")
    config = {**model.config("tiny"), "num_layers": 1}
    experts = [model.create(config, dtype=torch.float32, seed=seed) for seed in (0, 1)]
    pipe = wan_pipeline.tiny_pipeline(experts[0], transformer_2=experts[1], boundary_ratio=0.875)
    counted = [Counted(expert) for expert in experts]
    with Pipeline(pipe=pipe) as pipeline:
        result = pipeline(**{**CALL, "num_inference_steps": 12}, cache="easy", cache_threshold=ANY)
    early = int((pipe.scheduler.timesteps >= 875).sum())
    assert 2 < early < 8
    # Two steps of each run before anything is known of it, and the fourth after three skipped.
    ran = [i for i in range(early) if i not in (2, 3, 4)]
    ran += [early + i for i in range(12 - early) if i in (0, 1, 5, 9) or early + i == 11]
    assert [step.step for step in result.steps if step.ran] == ran
    assert counted[0].calls == 2 * sum(step < early for step in ran)
    assert counted[1].calls == 2 * sum(step >= early for step in ran)


def test_an_exported_graph_skips_as_pytorch_does(tmp_path):
    pipe = cogvideox()
    model = get_model("cogvideox-5b")
    path = tmp_path / "model.onnx"
    export_model(model, pipe.transformer, VideoSize(25, 128, 128), output=path)
    settings = CacheSettings("easy", threshold=0.5, first=0.1)
    with Pipeline(pipe=pipe, sparsity=0.0, cache=settings) as pipeline:
        wanted = pipeline(**CALL)
    graph = {"pipe": pipe, "onnx": path, "device": "cpu", "sparsity": 0.0}
    with rainfusion_trt.Pipeline(**graph, cache=settings) as pipeline:
        assert pipeline.backend == "onnxruntime"
        result = pipeline(**CALL)
        runs = []
        real = pipeline.denoiser.backend.run
        pipeline.denoiser.backend.run = lambda feed: runs.append(1) or real(feed)
        again = pipeline(**CALL)
    assert len(result.skipped) > 0 and result.skipped == wanted.skipped == again.skipped
    assert len(runs) == 8 - len(result.skipped)
    # Relative 1e-5 of two float32 implementations, through guidance and eight steps.
    torch.testing.assert_close(result.frames, wanted.frames, atol=1e-3, rtol=0)


def _shared(rank: int) -> list[Any]:
    """Clips of two processes, shared by tokens and by guidance, and in the first of one alone."""
    answers = []
    arguments = {**CALL, "num_inference_steps": 6, "cache": "easy", "cache_threshold": 0.8}
    for make, config in (
        (wan, ParallelConfig(ulysses=2)),
        (wan, ParallelConfig(guidance=2)),
        (cogvideox, ParallelConfig(guidance=2)),
    ):
        alone = None
        if rank == 0 and make is wan:
            with Pipeline(pipe=make()) as pipeline:
                alone = pipeline(**arguments)
        pipe = make()
        counted = Counted(pipe.transformer)
        with Pipeline(pipe=pipe, parallel=config) as pipeline:
            shared = pipeline(**arguments)
        error = None if alone is None else float((alone.frames - shared.frames).abs().max())
        known = None if alone is None else alone.skipped
        answers.append((shared.skipped, counted.calls, known, error))
    return answers


def test_two_processes_skip_the_same_steps():
    first, second = in_processes(_shared, 2)
    for which, (mine, other) in enumerate(zip(first, second, strict=True)):
        skipped, calls, alone, error = mine
        assert 0 < len(skipped) < 4 and other[:2] == (skipped, calls)
        assert calls == (6 - len(skipped)) * (2 if which == 0 else 1)
        if which < 2:  # a batch is decided by one half of it, and would alone be by both
            assert skipped == alone
            # As without a cache: fewer than 1024 roundings of latents of unit scale.
            assert error <= 1024 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("kind", cache_kinds())
def test_every_cache_of_diffusers_is_known(kind):
    """By its configuration, and by its hooks where somebody has put them there without one."""
    _, transformer = tiny("wan2.1-1.3b")
    assert other_cache(transformer) is None
    transformer.enable_cache(cache_config(kind, lambda: 999))
    assert kind in other_cache(transformer).name
    transformer._cache_config = None
    if kind not in NOTHING_FOR_WAN:
        assert "hook" in other_cache(torch.compile(transformer, backend="eager")).name


def test_what_cannot_be_is_refused_before_the_work():
    pipe = wan()
    with pytest.raises(InvalidInputError, match="is not one of off, easy, mag"):
        Pipeline(pipe=pipe, cache="teacache")
    with Pipeline(pipe=pipe) as pipeline:
        with pytest.raises(InvalidInputError, match="without a cache"):
            pipeline(**CALL, cache_threshold=0.1)
        with pytest.raises(InvalidInputError, match="needs calibrated ratios"):
            pipeline(**CALL, cache="mag")
        pipe.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=8))
        with pytest.raises(InvalidInputError, match="diffusers' MagCacheConfig on the transformer"):
            pipeline(**CALL, cache="easy")
        pipe.transformer.disable_cache()
        apply_mag_cache(pipe.transformer, MagCacheConfig(calibrate=True, num_inference_steps=8))
        with pytest.raises(InvalidInputError, match="diffusers' hook mag_cache_"):
            pipeline(**CALL, cache="easy")
        caching = pipeline._caching("easy", None)
        with pytest.raises(UnsupportedError, match="ar_step=5 and cache="):
            caching.check_call(pipe, 8, (), {"ar_step": 5})
