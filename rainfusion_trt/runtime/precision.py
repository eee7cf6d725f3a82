"""In which precision attention runs in each denoising step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.settings import PRECISIONS, Precision
from rainfusion_trt.runtime.schedule import runs_in_words

if TYPE_CHECKING:
    from rainfusion_trt.runtime.denoiser import Denoiser

logger = logging.getLogger("rainfusion_trt")


@dataclass(frozen=True)
class PrecisionSchedule:
    """8 bits, and 16 in the first and the last steps.

    Attributes
    ----------
    first, last : float
        Shares of the steps, each rounded up, that run in 16 bits at the start and at the end, in
        [0, 1].

    Examples
    --------
    >>> [PrecisionSchedule(first=0.2, last=0.1)(step, 5) for step in range(5)]
    ['16bit', '8bit', '8bit', '8bit', '16bit']
    """

    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            value = getattr(self, name)
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not is_number or not 0.0 <= float(value) <= 1.0:
                raise InvalidInputError(
                    f"{name}={shown(value)} must be a share of the steps in [0, 1] that run in 16 "
                    "bits"
                )

    def __call__(self, step: int, steps: int) -> Precision:
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 counts as 7.
        first, last = (math.ceil(round(share * steps, 9)) for share in (self.first, self.last))
        return "16bit" if step < first or step >= steps - last else "8bit"


def precision_of_options(
    chosen: str | None, first: float | None, last: float | None
) -> str | PrecisionSchedule | None:
    """Precision of the steps as a `Pipeline` takes it, from three options of a command.

    Raises
    ------
    InvalidInputError
        Shares that are in 16 bits where all steps are, or a share that is none.
    """
    if first is None and last is None:
        return chosen
    if chosen == "16bit":
        raise InvalidInputError(
            "--first-16bit and --last-16bit go with --attention-precision 8bit: all steps are in "
            "16 bits without them"
        )
    return PrecisionSchedule(first or 0.0, last or 0.0)


PrecisionPlan = Precision | Callable[[int, int], Precision] | tuple[Precision, ...]
"""That of all steps, of ``(step, steps)``, or one for each step."""

GivenPrecision = PrecisionPlan | Iterable[Precision]


def read_precision(given: GivenPrecision) -> PrecisionPlan:
    """What a user gives as `precision`, checked as far as it can be without a number of steps.

    Raises
    ------
    InvalidInputError
        Neither a precision, nor a function, nor one for each step.
    """
    if callable(given):
        return given
    if isinstance(given, str) or not isinstance(given, Iterable):
        return _checked(given, "precision")
    values = tuple(_checked(value, f"precision of step {i}") for i, value in enumerate(given))
    if not values:
        raise InvalidInputError("precision has no values: give one per step, or leave it out")
    return values


def may_be_eight_bit(plan: PrecisionPlan) -> bool:
    """Whether a step may run in 8 bits."""
    return callable(plan) or plan == "8bit" or (isinstance(plan, tuple) and "8bit" in plan)


def precision_per_step(plan: PrecisionPlan, steps: int) -> tuple[Precision, ...]:
    """The precision of each of so many steps.

    Raises
    ------
    InvalidInputError
        A function gives none that there is, or there is not one for each step.
    """
    if callable(plan):
        return tuple(
            _checked(plan(step, steps), f"precision of step {step}") for step in range(steps)
        )
    if isinstance(plan, str):
        return (plan,) * steps
    if len(plan) != steps:
        raise InvalidInputError(
            f"precision has {len(plan)} values for {steps} steps: give one per step, or a function "
            "of (step, steps)"
        )
    return plan


def possible_precision(
    asked: PrecisionPlan | None, exported: Precision, denoiser: Denoiser
) -> PrecisionPlan:
    """The precisions that a denoiser will run.

    Parameters
    ----------
    asked
        By the user; None for what was exported.
    exported
        Of the file or engine, or of the settings of the PyTorch transformer.

    Raises
    ------
    UnsupportedError
        8 bits were asked for, and it has none.
    """
    plan = exported if asked is None else asked
    if not may_be_eight_bit(plan) or "8bit" in denoiser.precisions:
        return plan
    if asked is not None:
        raise UnsupportedError(
            f"precision={_shown(asked)} was asked for, and {denoiser.name} has 16 bits alone here: "
            "use an engine that was exported with --attention-precision 8bit, or give it to the "
            "constructor with backend='torch'"
        )
    logger.warning("exported in 8 bits, and %s has 16 alone: results say so", denoiser.name)
    return "16bit"


def in_words(precisions: Iterable[Precision]) -> str:
    """Such as ``"5 x 16bit, 45 x 8bit"``."""
    return runs_in_words(list(precisions)) or "none"


def _checked(value: Any, name: str) -> Precision:
    if isinstance(value, str) and value in PRECISIONS:
        return cast("Precision", value)
    raise InvalidInputError(f"{name} is {shown(value)}: give one of {', '.join(PRECISIONS)}")


def _shown(plan: PrecisionPlan) -> str:
    return repr(plan) if isinstance(plan, (str, tuple, PrecisionSchedule)) else "a function"
