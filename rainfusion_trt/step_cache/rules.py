"""Two rules of when a step need not run: by what is seen, or by what was calibrated.

Both gather an error over the steps that are skipped, from 0 after each that runs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import CacheSettings

Tensors = tuple[Tensor, ...]
Timesteps = tuple[float, ...]


class Rule(Protocol):
    """What decides; it is told of the first call of every step."""

    def scheduled(self, timesteps: Callable[[], Timesteps]) -> None:
        """A generation, or a segment of one, begins, of timesteps that can be read."""

    def reset(self) -> None:
        """Forget everything: another transformer has its turn, or another segment begins."""

    def skips(self, step: int, inputs: Tensors) -> bool:
        """Whether the error stays below the threshold with this step, from 0, skipped too."""

    def saw(self, inputs: Tensors) -> None:
        """A step has these noisy latents, whether it runs or not; they stay as they are."""

    def ran(self, step: int, inputs: Tensors, outputs: Tensors) -> None:
        """A step has run; its outputs stay as they are too."""


class EasyRule:
    """Relative change of the output, foreseen from the input's (EasyCache, arXiv 2507.02860).

    With x_i the noisy latents of step i, and y_c the output of the last step c that ran after step
    b, the change of the output in step i is foreseen as ``k mean|x_i - x_(i-1)| / mean|y_c|``,
    where ``k = mean|y_c - y_b| / mean|x_c - x_b|``. Of several outputs (LTX-2: video and sound) the
    largest counts, of those whose latents move. Sums are float32 on the device; a decision reads
    one number from it.

    Parameters
    ----------
    threshold
        Of the sum of these changes since the last step that ran.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.reset()

    def scheduled(self, timesteps: Callable[[], Timesteps]) -> None:
        pass

    def reset(self) -> None:
        self._error = 0.0
        self._before: Tensors | None = None  # inputs of the step before
        self._inputs: Tensors | None = None  # of the last step that ran, and its outputs
        self._outputs: Tensors | None = None
        self._scale: Tensor | None = None  # k / mean|y_c| of each output

    def skips(self, step: int, inputs: Tensors) -> bool:
        if self._scale is None or self._before is None:
            return False
        change = _distances(inputs, self._before) * self._scale
        # NaN of latents that do not move: they say nothing. One number waits for the device.
        largest = float(change.nan_to_num(nan=-1.0).max())
        if largest < 0.0:
            return False  # none of them moves
        self._error += largest
        return self._error < self.threshold

    def saw(self, inputs: Tensors) -> None:
        self._before = inputs

    def ran(self, step: int, inputs: Tensors, outputs: Tensors) -> None:
        if self._inputs is not None and self._outputs is not None:
            rate = _distances(outputs, self._outputs) / _distances(inputs, self._inputs)
            self._scale = rate / torch.stack([y.float().abs().mean() for y in outputs])
        self._inputs, self._outputs = inputs, outputs
        self._error = 0.0


class MagRule:
    """Ratios of lengths that were calibrated (MagCache, arXiv 2506.09045); reads no device.

    What is reused would in step i be about ``m_(c+1) ... m_i`` times as long as it was in step c,
    the last that ran; the error is the sum of how far these products lie from 1.

    Parameters
    ----------
    threshold
        Of that sum.
    ratios
        m_i of every step; None where that step has to run.
    """

    def __init__(self, threshold: float, ratios: MagnitudeRatios) -> None:
        self.threshold = threshold
        self.ratios = ratios
        self.reset()

    def scheduled(self, timesteps: Callable[[], Timesteps]) -> None:
        self.ratios.check_timesteps(timesteps())

    def reset(self) -> None:
        self._error = 0.0
        self._product = 1.0

    def skips(self, step: int, inputs: Tensors) -> bool:
        ratio = self.ratios.ratios[step]
        if ratio is None:
            return False
        self._product *= ratio
        self._error += abs(1.0 - self._product)
        return self._error < self.threshold

    def saw(self, inputs: Tensors) -> None:
        pass

    def ran(self, step: int, inputs: Tensors, outputs: Tensors) -> None:
        self.reset()


def rule_of(settings: CacheSettings) -> Rule:
    """The rule of settings, at the beginning of a generation."""
    if settings.rule == "easy":
        return EasyRule(settings.threshold)
    assert settings.ratios is not None  # checked as the settings were made
    return MagRule(settings.threshold, settings.ratios)


def _distances(these: Tensors, those: Tensors) -> Tensor:
    """Mean of the absolute differences of each pair, float32 [number of pairs]."""
    means = [(a.float() - b.float()).abs().mean() for a, b in zip(these, those, strict=True)]
    return torch.stack(means)
