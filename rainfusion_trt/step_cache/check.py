"""What a call with a step cache cannot be, said before any work starts; and the cache itself."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.runtime.call_arguments import asked_steps, step_count
from rainfusion_trt.step_cache.cache import Decide, StepCache
from rainfusion_trt.step_cache.others import other_cache
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.rules import Rule, Timesteps
from rainfusion_trt.step_cache.settings import CacheSettings


@dataclass(frozen=True)
class Caching:
    """How the steps of a call are cached.

    Attributes
    ----------
    settings
        Which are skipped.
    rule
        Instead of that which the settings name.
    """

    settings: CacheSettings
    rule: Rule | None = None

    def cache(self, model: VideoModel, pipe: Any, decide: Decide) -> StepCache:
        """The cache of one generation of a pipeline; see `StepCache`."""
        timesteps = functools.partial(_timesteps, pipe)
        return StepCache(self.settings, model, rule=self.rule, decide=decide, timesteps=timesteps)

    def check_call(
        self, pipe: Any, steps: int, transformers: Iterable[Any], arguments: Mapping[str, Any]
    ) -> None:
        """Refuse calls whose steps are not what a cache takes them for.

        Parameters
        ----------
        pipe, steps
            The diffusers pipeline that makes the call, and how many steps it will have.
        transformers
            What stands in it.
        arguments
            Of the call.

        Raises
        ------
        InvalidInputError, UnsupportedError
            Ratios of another run, a cache of diffusers beside this one, or frames that are at
            different steps.
        """
        if self.settings.ratios is not None:
            self.settings.ratios.check_pipe(pipe)
            self.settings.ratios.check_steps(steps, _remedy(pipe, arguments, self.settings.ratios))
        if arguments.get("ar_step"):
            raise UnsupportedError(
                f"ar_step={arguments['ar_step']} and cache=: frames are at different steps then, "
                "and none can be skipped for all; pass ar_step=0, or leave cache= out"
            )
        for transformer in transformers:
            other = other_cache(transformer)
            if other is not None:
                raise InvalidInputError(
                    f"cache={self.settings.rule!r} and {other.name} on the transformer, which "
                    f"would not see the steps that are skipped: {other.remedy}, or leave cache= out"
                )


def _remedy(pipe: Any, arguments: Mapping[str, Any], ratios: MagnitudeRatios) -> str:
    """What to ask for, so that a run has as many steps as were calibrated."""
    asked = asked_steps(pipe.scheduler, ratios.steps)
    with_that = step_count(pipe, {**arguments, "num_inference_steps": asked})
    # Timesteps of the user's own, or a strength that leaves some of them out.
    return (
        f"ask for num_inference_steps={asked}" if with_that == ratios.steps else "ask for as many"
    )


def _timesteps(pipe: Any, steps: int) -> Timesteps:
    """The last `steps` timesteps that the scheduler of a pipeline was set to."""
    return tuple(torch.as_tensor(pipe.scheduler.timesteps).double().cpu()[-steps:].tolist())
