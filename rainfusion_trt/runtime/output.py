"""`PipelineOutput`: what a `Pipeline` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.runtime.report import StepReport
from rainfusion_trt.runtime.steps import StepTiming
from rainfusion_trt.step_cache.settings import CacheSettings


@dataclass(frozen=True)
class PipelineOutput:
    """What a run made.

    Attributes
    ----------
    frames : list, numpy.ndarray or Tensor
        As the diffusers pipeline returns them: `frames[i]` is the clip of the i-th prompt.
    steps : tuple of StepReport
        What every step ran, which need not be what was asked for: its sparsity, its precision, how
        many self-attentions were RainFusion, how many dense and how many a cache skipped, and the
        share of the token pairs that were computed.
    backend : str
        Which backend ran.
    audio : Tensor, optional
        Sound of every prompt, [B, channels, samples] in [-1, 1], of pipelines that make any;
        latents where latents were asked for.
    audio_rate : int, optional
        Its samples per second.
    timings : tuple of StepTiming
        Time of every step, empty unless asked for with ``profile=True``.
    cache : CacheSettings, optional
        By what steps were skipped; `skipped` says which.
    """

    frames: Any
    steps: tuple[StepReport, ...]
    backend: str
    timings: tuple[StepTiming, ...] = ()
    audio: Any = None
    audio_rate: int | None = None
    cache: CacheSettings | None = None

    @property
    def sparsity(self) -> tuple[float, ...]:
        """Sparsity of every step; 0 where attention was dense, or nothing ran."""
        return tuple(step.sparsity for step in self.steps)

    @property
    def precision(self) -> tuple[Precision | None, ...]:
        """Precision of the attention of every step; None where none ran."""
        return tuple(step.precision for step in self.steps)

    @property
    def skipped(self) -> tuple[int, ...]:
        """Steps, from 0, in which a step cache answered in the transformer's place."""
        return tuple(step.step for step in self.steps if not step.ran)

    @property
    def density(self) -> float | None:
        """Computed share of the token pairs of all steps, those that were skipped among them.

        None where an engine was sparse, since it does not report what it leaves out.
        """
        shares = [step.density for step in self.steps]
        known = [share for share in shares if share is not None]
        return sum(known) / len(known) if known and len(known) == len(shares) else None
