"""`PipelineOutput`: what a `Pipeline` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rainfusion_trt.runtime.report import StepReport
from rainfusion_trt.runtime.steps import StepTiming


@dataclass(frozen=True)
class PipelineOutput:
    """What a run made.

    Attributes
    ----------
    frames : list, numpy.ndarray or Tensor
        As the diffusers pipeline returns them: `frames[i]` is the clip of the i-th prompt.
    steps : tuple of StepReport
        What every step ran, which need not be what was asked for: its sparsity, how many
        self-attentions were RainFusion and how many dense, and the share of the token pairs that
        they computed.
    backend : str
        Which backend ran.
    audio : Tensor, optional
        Sound of every prompt, [B, channels, samples] in [-1, 1], of pipelines that make any;
        latents where latents were asked for.
    audio_rate : int, optional
        Its samples per second.
    timings : tuple of StepTiming
        Time of every step, empty unless asked for with ``profile=True``.
    """

    frames: Any
    steps: tuple[StepReport, ...]
    backend: str
    timings: tuple[StepTiming, ...] = ()
    audio: Any = None
    audio_rate: int | None = None

    @property
    def sparsity(self) -> tuple[float, ...]:
        """Sparsity of every step that ran; 0 where attention was dense."""
        return tuple(step.sparsity for step in self.steps)
