"""What a call with a step cache cannot be, said before any work starts; and the cache itself."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.step_cache.cache import Decide, StepCache
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
            self.settings.ratios.check_run(pipe, steps)
        if arguments.get("ar_step"):
            raise UnsupportedError(
                f"ar_step={arguments['ar_step']} and cache=: frames are at different steps then, "
                "and none can be skipped for all; pass ar_step=0, or leave cache= out"
            )
        for transformer in transformers:
            if getattr(transformer, "is_cache_enabled", False):
                kind = type(transformer._cache_config).__name__
                raise InvalidInputError(
                    f"cache={self.settings.rule!r} and diffusers' {kind} on the transformer, which "
                    "would not see the steps that are skipped: call its disable_cache(), or leave "
                    "cache= out"
                )


def _timesteps(pipe: Any, steps: int) -> Timesteps:
    """The last `steps` timesteps that the scheduler of a pipeline was set to."""
    return tuple(torch.as_tensor(pipe.scheduler.timesteps).double().cpu()[-steps:].tolist())
