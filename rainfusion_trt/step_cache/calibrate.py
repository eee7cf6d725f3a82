"""Measures what the rule "mag" needs: by how much what is reused grows from step to step."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, NotFiniteError
from rainfusion_trt.step_cache.check import Caching
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.rules import Tensors, Timesteps
from rainfusion_trt.step_cache.settings import CacheSettings

if TYPE_CHECKING:
    from rainfusion_trt.runtime.pipeline import Pipeline


class MagnitudeRecorder:
    """In the place of a rule: lets every step run and measures what its first call gave.

    Parameters
    ----------
    reuse
        Of `CacheSettings`.

    Attributes
    ----------
    timesteps
        Of the latest generation, or segment.
    found : dict of int to list of (float or None)
        By step, one of each generation or segment; None where no step came before. Of several
        outputs the ratio that lies farthest from 1.
    """

    def __init__(self, reuse: str = "output") -> None:
        self._reuse = reuse
        self.timesteps: Timesteps = ()
        self.found: dict[int, list[float | None]] = {}
        self._lengths: Tensor | None = None  # of the step before, one for each output

    def scheduled(self, timesteps: Callable[[], Timesteps]) -> None:
        self.timesteps = timesteps()

    def reset(self) -> None:
        self._lengths = None

    def skips(self, step: int, inputs: Tensors) -> bool:
        return False

    def saw(self, inputs: Tensors) -> None:
        pass

    def ran(self, step: int, inputs: Tensors, outputs: Tensors) -> None:
        base = inputs if self._reuse == "residual" else tuple(0 * x for x in inputs)
        pairs = zip(base, outputs, strict=True)
        lengths = torch.stack([(y.float() - x.float()).norm() for x, y in pairs])
        ratio = None
        if self._lengths is not None:
            ratio = max((lengths / self._lengths).tolist(), key=lambda value: abs(value - 1.0))
        self.found.setdefault(step, []).append(ratio)
        self._lengths = lengths

    def ratios(self) -> tuple[float | None, ...]:
        """The mean of every step."""
        return tuple(self._mean(step) for step in range(len(self.timesteps)))

    def _mean(self, step: int) -> float | None:
        values = self.found.get(step, [])
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None


def calibrate(
    pipeline: Pipeline, prompts: Iterable[str], *, reuse: str = "output", **call: Any
) -> MagnitudeRatios:
    """Make a generation of every prompt, none of whose steps is skipped, and measure its steps.

    Parameters
    ----------
    pipeline
        In which ``cache="mag"`` is going to be used. Any backend.
    prompts
        One or more; ratios are the mean of theirs.
    reuse
        Of the `CacheSettings` that the ratios are for.
    **call
        As for a call of the pipeline: steps, size, guidance, what it starts from.

    Raises
    ------
    InvalidInputError
        No prompt; or what a call refuses.
    NotFiniteError
        The transformer gave NaN, infinity, or nothing.
    """
    recorder, count = MagnitudeRecorder(reuse), 0
    settings = CacheSettings("easy", first=1.0, reuse=reuse)  # every step is one of the first
    for prompt in prompts:
        caching = Caching(settings, rule=recorder)
        pipeline(prompt, cache=caching, **{"output_type": "latent", **call})
        count += 1
    if not count:
        raise InvalidInputError("no prompt to calibrate with: give one or more")
    ratios, scheduler = recorder.ratios(), pipeline.pipe.scheduler
    if not all(math.isfinite(ratio) for ratio in ratios if ratio is not None):
        raise NotFiniteError(f"ratios of {pipeline.model.name} are not finite: {ratios}")
    return MagnitudeRatios(
        model=pipeline.model.name,
        scheduler=type(scheduler).__name__,
        timesteps=recorder.timesteps,
        boundary=pipeline.pipe.config.get("boundary_ratio"),
        ratios=ratios,
        prompts=count,
        reuse=reuse,
    )
