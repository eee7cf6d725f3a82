"""What the first process does by callback and progress, and noise of no generator, reach all."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import FlowMatchLCMScheduler

import rainfusion_trt
from rainfusion_trt import ParallelConfig
from rainfusion_trt.errors import GenerationCancelled, InvalidInputError, RainFusionError
from tests.helpers.parallel_pipelines import CALL, wan
from tests.helpers.process_group import in_processes

Pipeline = functools.partial(
    rainfusion_trt.Pipeline,
    backend="torch",
    device="cpu",
    method="rainfusion",
    sparsity=0.6,
)
ARGUMENTS = {**CALL, "prompt": "a fox", "guidance_scale": 4.0, "output_type": "latent"}
_STEP = 1
KINDS = (ParallelConfig(2, timeout=20), ParallelConfig(guidance=2, timeout=20))


def noisy() -> Any:
    """A pipeline whose scheduler draws noise in every step, without a generator."""
    pipe = wan()
    pipe.scheduler = FlowMatchLCMScheduler(shift=3.0)
    return pipe


def _changes(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    """No guidance from step 1 on, so that a step has one call less, and noise of its own."""
    if step == 0:
        pipe._guidance_scale = 1.0
        pipe._attention_kwargs = {"scale": 0.5}
    return {"latents": tensors["latents"] + 0.1 * torch.randn_like(tensors["latents"])}


def _clips(rank: int) -> dict[str, Any]:
    torch.manual_seed(rank)
    answers: dict[str, Any] = {"errors": [], "sums": [], "kwargs": [], "steps": []}
    alone = None
    if rank == 0:
        with Pipeline(pipe=noisy()) as pipeline:
            alone = pipeline(**ARGUMENTS, callback_on_step_end=_changes).frames
    for kind in KINDS:
        pipe = noisy()
        ends: list[float] = []
        step = pipe.scheduler.step

        def watched(*args: Any, step: Any = step, ends: Any = ends, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            ends.append(float(result[0].double().sum()))
            return result

        pipe.scheduler.step = watched
        with Pipeline(pipe=pipe, parallel=kind) as pipeline:

            def interrupt(done: int, steps: int, pipe: Any = pipe) -> None:
                pipe._interrupt = done == 1

            answers["steps"].append(len(pipeline(**ARGUMENTS, progress=interrupt).steps))
            ends.clear()
            shared = pipeline(**ARGUMENTS, callback_on_step_end=_changes)
            answers["kwargs"].append(pipe._attention_kwargs)
            if alone is not None:
                answers["errors"].append(float((alone - shared.frames).abs().max()))
            pipeline(**{**ARGUMENTS, "seed": None})
        answers["sums"].append(ends)
    return answers


def test_changes_and_noise_reach_all():
    first, second = in_processes(_clips, 2)
    # As in test_parallel_pipeline.py: fewer than 1024 terms a sum, each off by one rounding.
    assert max(first["errors"]) <= 1024 * torch.finfo(torch.float32).eps
    assert first["sums"] == second["sums"]
    assert [len(set(ends)) for ends in first["sums"]] == [2 * CALL["num_inference_steps"]] * 2
    assert first["steps"] == second["steps"] == [1, 1]
    assert first["kwargs"] == second["kwargs"] == [{"scale": 0.5}] * 2


def _raises(error: Exception) -> Any:
    def told(*given: Any) -> dict[str, Any]:
        if given[1] == 1:  # the step
            raise error
        return given[-1]

    return told


def _progress(done: int, steps: int) -> None:
    if done == 1:
        raise GenerationCancelled("that was enough")


def _ends(rank: int) -> list[tuple[str, str, bool]]:
    """What a call says that the first process ends, and whether the next one is as always."""
    watches: tuple[dict[str, Any], ...] = (
        {"callback_on_step_end": _raises(GenerationCancelled("that was enough"))},
        {"progress": _progress},
        {"callback_on_step_end": _raises(KeyError("latent"))},
        {"callback_on_step_end": lambda *_: None},
    )
    answers = []
    for kind in KINDS:
        with Pipeline(pipe=wan(), parallel=kind) as pipeline:
            usual = pipeline(**ARGUMENTS).frames
            for watch in watches:
                with pytest.raises((RainFusionError, KeyError)) as error:
                    pipeline(**ARGUMENTS, **watch)
                again = pipeline(**ARGUMENTS).frames
                same = usual is None or torch.equal(again, usual)
                answers.append((error.type.__name__, str(error.value), same))
    return answers


def test_an_end_by_the_first_process_is_that_of_all_and_of_one_call():
    first, second = in_processes(_ends, 2)
    cancelled = [(GenerationCancelled.__name__, "that was enough", True)] * 2
    for answers in (first[:4], first[4:], second[:4], second[4:]):
        assert answers[:2] == cancelled and all(same for *_, same in answers)
    for own, others in zip(first, second, strict=True):
        if own[0] == GenerationCancelled.__name__:
            continue
        assert others[0] == RainFusionError.__name__ and "\n" not in others[1]
        assert "process 0 ended the call by its callback or progress" in others[1]
        assert own[1][:40] in others[1]
    assert [kind for kind, *_ in first[2:4]] == [KeyError.__name__, InvalidInputError.__name__]
