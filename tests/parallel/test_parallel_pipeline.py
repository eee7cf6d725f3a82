"""`Pipeline(parallel=...)`: several processes make the clip that one makes."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

import rainfusion_trt
from rainfusion_trt import ParallelConfig
from rainfusion_trt.errors import (
    GenerationCancelled,
    InvalidInputError,
    NotFiniteError,
    ParallelError,
    RainFusionError,
    UnsupportedError,
)
from rainfusion_trt.models import get_model
from rainfusion_trt.parallel.guidance import GuidanceGroups
from rainfusion_trt.parallel.sharing import sharing
from rainfusion_trt.parallel.team import Team
from rainfusion_trt.routing.parallel import Ulysses
from tests.helpers.parallel_pipelines import CALL, cogvideox, wan
from tests.helpers.process_group import in_processes

Pipeline = functools.partial(
    rainfusion_trt.Pipeline,
    backend="torch",
    device="cpu",
    method="rainfusion",
    sparsity=0.6,
    dense_fraction=0.3,
)


class Watched:
    """A pipeline whose latents after every step are kept, in every process."""

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.latents: list[torch.Tensor] = []
        step = pipe.scheduler.step

        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            self.latents.append(result[0].clone())
            return result

        pipe.scheduler.step = watched


def _brighter(calls: list[int]) -> Any:
    """A callback that changes the latents and ends the generation in its second step."""

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        calls.append(step)
        if step == 1:
            pipe._interrupt = True
        return {"latents": tensors["latents"] + 0.25}

    return callback


def _clips(rank: int) -> dict[str, Any]:
    """Clips of four processes and, in the first one, of that process alone."""
    answers: dict[str, Any] = {"parts": []}
    for make, prompt in ((wan, "a fox"), (cogvideox, "a fox"), (wan, ["a fox", "two owls"])):
        arguments = {**CALL, "prompt": prompt, "output_type": "latent", "guidance_scale": 4.0}
        alone = None
        if rank == 0:
            with Pipeline(pipe=make()) as pipeline:
                alone = pipeline(**arguments)
        watched = Watched(make())
        with Pipeline(pipe=watched.pipe, parallel=ParallelConfig(2, 2)) as pipeline:
            shared = pipeline(**arguments)
        assert (shared.frames is None) == (rank > 0)
        error = density = 0.0
        if alone is not None:
            error = float((alone.frames - shared.frames).abs().max())
            assert shared.sparsity == alone.sparsity and alone.sparsity[-1] == 0.6
            first, whole = (out.steps[-1].density for out in (shared, alone))
            density = (first, whole)
        answers["parts"].append((error, density, float(watched.latents[-1].double().sum())))

    # No seed, and a callback in the first process that changes the latents and stops.
    calls: list[int] = []
    watched = Watched(wan())
    with Pipeline(pipe=watched.pipe, parallel=ParallelConfig(2, 2)) as pipeline:
        arguments = {**CALL, "seed": None, "guidance_scale": 4.0, "output_type": "latent"}
        pipeline("a fox", callback_on_step_end=_brighter(calls), **arguments)
        answers["agreed"] = pipeline.sharing.team.agree_in("ulysses", lambda: rank)
    answers["calls"] = calls
    answers["sums"] = [float(latents.double().sum()) for latents in watched.latents]
    return answers


def test_four_processes_make_the_clip_of_one():
    first, *others = in_processes(_clips, 4)
    for error, (density, whole), _ in first["parts"]:
        # Latents are of unit scale. A product of a matrix with half as many rows may add its terms
        # in another order; there are fewer than 1024 of them, each off by one rounding at most.
        assert error <= 1024 * torch.finfo(torch.float32).eps
        assert 0.0 < whole < 1.0 and density == pytest.approx(whole, abs=0.2)
    assert first["calls"] == [0, 1]
    assert len(first["sums"]) == 2
    assert [answers["agreed"] for answers in (first, *others)] == [0, 0, 2, 2]
    for other in others:
        assert [part[2] for part in other["parts"]] == [part[2] for part in first["parts"]]
        assert other["calls"] == [] and other["sums"] == first["sums"]


def _noting(rows: set[int]) -> Any:
    """`Ulysses._rows`, which notes how many there are."""
    rows_of = Ulysses._rows

    def noting(ulysses: Ulysses, heads: int) -> Any:
        found = rows_of(ulysses, heads)
        rows.add(len(found))
        return found

    return noting


def _overlapping(rank: int) -> list[Any]:
    """A clip in both halves of guidance and with a step cache, without and with overlap."""
    found = []
    arguments = {**CALL, "num_inference_steps": 5, "guidance_scale": 4.0, "output_type": "latent"}
    for overlap in (False, True):
        watched = Watched(wan(num_attention_heads=4))
        config = ParallelConfig(2, 2, overlap=overlap)
        rows: set[int] = set()
        options = {"model": "wan2.1-1.3b", "cache": "easy", "cache_threshold": 10.0}
        with (
            Pipeline(pipe=watched.pipe, parallel=config, **options) as pipeline,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(Ulysses, "_rows", _noting(rows))
            steps = pipeline("a fox", **arguments).steps
            found.append((watched.latents[-1].sum().item(), steps, rows))
            assert ("overlap" in pipeline.denoiser.describe()) is overlap
    return found


def test_overlap_makes_the_same_clip():
    for (one, steps, rows), (two, steps_2, rows_2) in in_processes(_overlapping, 4):
        assert one == two and rows == {1} and rows_2 == {2}
        assert [step.ran for step in steps] == [step.ran for step in steps_2]
        assert not all(step.ran for step in steps)  # the cache skips some
        densities, others = ([step.density for step in each] for each in (steps, steps_2))
        assert densities == pytest.approx(others, abs=1e-6) and 0.0 < densities[-1] < 1.0


def _error(rank: int, case: str) -> str:
    """What one of two processes says where a generation cannot be."""
    prompt, arguments = "a fox", {**CALL, "guidance_scale": 1.0, "output_type": "latent"}
    config = ParallelConfig(guidance=2) if case == "no guidance" else ParallelConfig(2, timeout=20)
    if case == "other words" and rank == 1:
        prompt, arguments["schedule"] = "an owl", [0.0, 0.5, 0.6]
        config = ParallelConfig(guidance=2, timeout=20)
    pipeline = Pipeline(pipe=wan(), parallel=config)
    if case == "fails" and rank == 1:
        pipeline.pipe.scheduler.step = None
    with pytest.raises((RainFusionError, TypeError)) as error:
        pipeline(prompt, **arguments)
    with pytest.raises(RainFusionError):
        pipeline(prompt, **arguments)  # what is broken stays so, and nobody waits
    return str(error.value)


def test_a_step_without_a_second_half_is_an_error():
    for said in in_processes(_error, 2, "no guidance"):
        assert "this step has no second half" in said and "\n" not in said


def test_different_arguments_are_an_error_in_all_processes():
    first, second = in_processes(_error, 2, "other words")
    words = "called with other arguments than process 0 (parallel, prompt, sparsity):"
    assert f"process 1 was {words}" in second
    assert "process 1" in first and "\n" not in first


def test_an_error_in_one_process_reaches_the_others():
    first, second = in_processes(_error, 2, "fails")
    assert "NoneType" in second
    assert "process 1 failed: 'NoneType' object is not callable" in first


def _two_alive(rank: int) -> dict[str, Any]:
    """Two pipelines of two processes that take turns, and what they leave in the store."""
    arguments = {**CALL, "guidance_scale": 4.0, "output_type": "latent"}
    kinds = (ParallelConfig(2), ParallelConfig(guidance=2))
    watched = [Watched(wan()) for _ in kinds]
    pipelines = [
        Pipeline(pipe=each.pipe, parallel=config)
        for each, config in zip(watched, kinds, strict=True)
    ]
    store = dist.distributed_c10d._get_default_store()
    answers: dict[str, Any] = {"keys": [], "said": []}
    for _ in range(2):
        for pipeline in pipelines:
            pipeline("a fox", **arguments)
            pipeline.sharing.team.meet()
            dist.barrier()  # by now both have taken away what is theirs
            if rank == 0:
                answers["keys"].append(store.num_keys())
            dist.barrier()
    meshes = [pipeline.sharing.team.mesh for pipeline in pipelines]
    with Pipeline(pipe=wan(), parallel=kinds[0]) as third:
        answers["same groups"] = third.sharing.team.mesh is meshes[0] is not meshes[1]
        # After exchanges of tokens, which all have had alike; a generation goes on from there.
        with pytest.raises(NotFiniteError, match="not finite"):
            third("a fox", latents=torch.full((1, 16, 7, 16, 16), float("nan")), **arguments)
        flag = threading.Event()
        watch = {"cancel": flag, "progress": lambda done, _: flag.set() if done == 2 else None}
        with pytest.raises(GenerationCancelled, match="after 2 steps"):
            third("a fox", **watch, **arguments)
        assert third.sharing.fault() is None

    def inner(*_: Any) -> dict[str, Any]:
        pipelines[1]("a fox", **arguments)
        raise AssertionError("not to be reached")

    def outer(*given: Any) -> dict[str, Any]:
        with pytest.raises(InvalidInputError, match="works in this process already") as error:
            inner(*given)
        answers["said"].append(str(error.value))
        return given[-1]

    pipelines[0]("a fox", callback_on_step_end=outer, **arguments)
    pipelines[0]("a fox", **arguments)
    for pipeline in pipelines:
        pipeline.close()
    # The latents of the clips of each, and at their ends.
    answers["sums"] = [
        [float(x.double().sum()) for x in each.latents[CALL["num_inference_steps"] - 1 :: 3]]
        for each in watched
    ]
    return answers


def test_two_pipelines_take_turns_and_leave_nothing_in_the_store():
    first, second = in_processes(_two_alive, 2)
    # Whatever a clip is agreed on by is taken away as the next one begins.
    assert len(set(first["keys"])) == 1
    assert first["same groups"] and second["same groups"]
    assert len(first["said"]) == CALL["num_inference_steps"] and second["said"] == []
    assert first["sums"] == second["sums"]
    assert [len(sums) for sums in first["sums"]] == [4, 2]
    assert [len(set(sums)) for sums in first["sums"]] == [1, 1]


def _told(rank: int) -> str:
    """What a later team hears of what the first one, which has made the group, was told."""
    first, later = (Team.join(ParallelConfig(2), "cpu") for _ in range(2))
    if rank == 1:
        first.tell("out of memory")
    first.meet()
    with pytest.raises(ParallelError) as error:
        later.look()
    return str(error.value)


def test_a_failure_is_heard_in_every_later_pipeline():
    said = in_processes(_told, 2, group=False)
    assert said == ["process 1 failed: out of memory"] * 2


def _lost(rank: int, number: int) -> tuple[str, float, bool]:
    """What a process says whose other one is lost in the second step, and how long that takes."""
    pipe = wan()
    with Pipeline(pipe=pipe, parallel=ParallelConfig(2, timeout=4)) as pipeline:
        steps, step = itertools.count(), pipe.scheduler.step

        def lose(*args: Any, **kwargs: Any) -> Any:
            if rank == 1 and next(steps) == 1:
                os.kill(os.getpid(), number)
            return step(*args, **kwargs)

        pipe.scheduler.step = lose
        start = time.monotonic()
        with pytest.raises(ParallelError) as error:
            pipeline("a fox", **CALL, guidance_scale=1.0, output_type="latent")
        return str(error.value), time.monotonic() - start, Team._broken


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_lost_in_the_middle_is_an_error(number):
    """Of processes that a launcher started, which make their group themselves."""
    ((said, seconds, is_broken),) = in_processes(_lost, 2, number, group=False, lost=[1])
    assert "a process of this run is lost or did not answer for 4 seconds" in said
    assert "\n" not in said and is_broken
    assert seconds < 60


def test_what_cannot_be_is_refused_in_one_line(tmp_path):
    cases = (
        ({"ring": 2}, UnsupportedError, "a part of the keys"),
        ({"tensor": 2}, UnsupportedError, "no tensor-parallel plan"),
        ({"guidance": 3}, InvalidInputError, "two halves"),
        ({"ulysses": 0}, InvalidInputError, "from 1 on"),
        ({"timeout": 0.0}, InvalidInputError, "seconds"),
        ({"timeout": "60"}, InvalidInputError, "seconds"),
        ({"overlap": 1, "ulysses": 2}, InvalidInputError, "give True or False"),
        ({"overlap": True, "guidance": 2}, InvalidInputError, "ulysses=1 has none"),
    )
    for given, kind, words in cases:
        with pytest.raises(kind, match=words) as error:
            ParallelConfig(**given)
        assert "\n" not in str(error.value)
    pipe = wan()
    with pytest.raises(InvalidInputError, match="torchrun --nproc-per-node 4"):
        Pipeline(pipe=pipe, parallel=ParallelConfig(2, 2))
    with pytest.raises(RainFusionError, match="the backend here is onnxruntime"):
        sharing(ParallelConfig(2), "cpu", ["onnxruntime", "torch"])
    for backend in ("tensorrt", "tensorrt_rtx", "onnxruntime"):
        with pytest.raises(UnsupportedError, match="overlap=True is for the PyTorch transformer"):
            sharing(ParallelConfig(2, overlap=True), "cpu", [backend, "torch"])


@pytest.mark.parametrize("name", ["ltx-2", "cosmos-predict2.5-2b", "kandinsky5-lite"])
def test_guidance_whose_results_have_another_form_is_refused(name):
    """Two results a call, or other axes than the latents: processes exchange one, of theirs."""
    with pytest.raises(UnsupportedError, match=f"guidance=2 cannot split the calls of {name}"):
        GuidanceGroups(torch.nn.Identity(), get_model(name), None)


def test_a_pipeline_of_one_process_needs_no_group():
    with Pipeline(pipe=wan(), parallel=ParallelConfig()) as pipeline:
        assert pipeline.sharing.first
