"""What ran: attentions, sparsity and density per call of the transformer and per denoising step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from rainfusion_trt.operator.settings import EIGHT_BIT_FORMATS, Precision


class Moment(NamedTuple):
    """Where in a generation a call of the transformer comes.

    Attributes
    ----------
    step, steps : int
        Of the segment that runs, from 0, and how many it has.
    done : int
        Steps of all segments that are done.
    never : int
        How many of `steps`, at the end, the pipeline has timesteps for and does not run.
    """

    step: int
    steps: int
    done: int
    never: int = 0


@dataclass(frozen=True)
class CallReport:
    """Self-attentions over the video tokens in one call of the transformer.

    Attributes
    ----------
    routed : int
        Those that RainFusionAttention computed.
    dense : int
        Those that should have been routed and were not.
    density : Tensor, optional
        Mean over the routed ones of the computed share of their token pairs, one number on the
        device; None where the backend does not report it.
    skipped : int
        Those that did not run, as a cache within the transformer or around it let them out.
    ran : bool
        False where a step cache answered in the transformer's place.
    precision : str
        Of the routed ones.
    """

    routed: int
    dense: int = 0
    density: Tensor | None = None
    skipped: int = 0
    ran: bool = True
    precision: Precision = "16bit"


@dataclass(frozen=True)
class StepReport:
    """What one denoising step ran.

    Attributes
    ----------
    step : int
        From 0.
    sparsity : float
        The one in force; 0 where attention was dense, whatever was asked for, or nothing ran.
    routed : int
        Self-attentions that RainFusionAttention computed, over all calls of the step.
    dense : int
        Self-attentions that ran dense in its place; above 0 only where ``allow_dense=True``.
    density : float or None
        Computed share of the token pairs, over all these attentions: 1 where all were dense, 0
        where none ran. None where an engine was sparse, since it does not report what it leaves
        out.
    skipped : int
        Self-attentions that a cache within the transformer or around it let out.
    ran : bool
        Whether the transformer ran in it at all.
    precision : str or None
        "8bit" where RainFusionAttention computed in 8 bits, else "16bit": the element type of the
        model. None where no attention ran.
    """

    step: int
    sparsity: float
    routed: int
    dense: int
    density: float | None = None
    skipped: int = 0
    ran: bool = True
    precision: Precision | None = "16bit"

    @property
    def formats(self) -> Mapping[str, str]:
        """What q, k, the probabilities p and v were rounded to; empty where to nothing."""
        return EIGHT_BIT_FORMATS if self.precision == "8bit" else {}

    @classmethod
    def of(cls, step: int, planned: float, calls: Sequence[CallReport]) -> StepReport:
        """Of the calls of a step that had `planned` as its sparsity; waits for the device."""
        routed, dense = sum(c.routed for c in calls), sum(c.dense for c in calls)
        skipped, ran = sum(c.skipped for c in calls), any(c.ran for c in calls)
        sparsity = planned if routed else 0.0
        density: float | None
        if sparsity == 0.0:  # by count: all that ran was dense
            density = (routed + dense) / (routed + dense + skipped) if skipped else 1.0
        else:
            density = _density(calls)
        eight_bit = any(c.routed and c.precision == "8bit" for c in calls)
        precision: Precision | None = "8bit" if eight_bit else "16bit"
        if not routed + dense:
            precision = None
        return cls(step, sparsity, routed, dense, density, skipped, ran, precision)


def _density(calls: Sequence[CallReport]) -> float | None:
    computed = 0.0
    for call in calls:
        if call.routed and call.density is None:
            return None
        if call.density is not None:
            computed += call.routed * float(call.density)
        computed += call.dense
    return computed / sum(call.routed + call.dense + call.skipped for call in calls)
