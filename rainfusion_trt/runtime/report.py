"""What ran: attentions and sparsity per call of the transformer and per denoising step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CallReport:
    """Self-attentions over the video tokens in one call of the transformer.

    Attributes
    ----------
    routed : int
        Those that RainFusionAttention computed.
    dense : int
        Those that should have been routed and were not.
    """

    routed: int
    dense: int = 0


@dataclass(frozen=True)
class StepReport:
    """What one denoising step ran.

    Attributes
    ----------
    step : int
        From 0.
    sparsity : float
        The one in force; 0 where attention was dense, whatever was asked for.
    routed : int
        Self-attentions that RainFusionAttention computed, over all calls of the step.
    dense : int
        Self-attentions that ran dense in its place; above 0 only where ``allow_dense=True``.
    density : float or None
        Computed share of the token pairs: 1 where all attention was dense. None where it was
        sparse, since kernels and engines do not report what they skip; `classify_heads` tells it
        for given q and k.
    """

    step: int
    sparsity: float
    routed: int
    dense: int

    @property
    def density(self) -> float | None:
        return 1.0 if self.sparsity == 0.0 else None
