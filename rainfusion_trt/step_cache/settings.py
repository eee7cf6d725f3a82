"""``CacheSettings``: by which rule steps are skipped, and which never are.

Imports no torch, so that the command line knows the names without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.step_cache.ratios import MagnitudeRatios

OFF = "off"


@dataclass(frozen=True)
class RuleDefaults:
    """What a rule has where nobody says otherwise.

    Attributes
    ----------
    threshold : float
        Error that may gather over steps that are skipped.
    first : float
        Share of the steps, rounded up, that always run at the start.
    """

    threshold: float
    first: float


# EasyCache (arXiv 2507.02860) as published for Wan 2.1; MagCache (arXiv 2506.09045) as diffusers
# has it, but for the threshold: 0.06 there is of residuals within the transformer, and the length
# of what leaves it changes less while it turns (docs/caching.md).
RULES: dict[str, RuleDefaults] = {
    "easy": RuleDefaults(threshold=0.05, first=0.1),
    "mag": RuleDefaults(threshold=0.02, first=0.2),
}
CACHES = (OFF, *RULES)
REUSES = ("output", "residual")
_OF_RULE: Any = None  # the default of the rule, put there as settings are made


@dataclass(frozen=True)
class CacheSettings:
    """Which steps of a generation are skipped.

    Attributes
    ----------
    rule : str
        ``"easy"``: by how much inputs and outputs change while it runs. ``"mag"``: by ratios that
        were calibrated.
    threshold : float
        A step is skipped while the gathered error stays below it; 0 skips none. By default that of
        :data:`RULES`, as is `first`.
    first : float
        Share of the steps, rounded up, that always run at the start, in [0, 1].
    last : int
        How many always run at the end.
    max_skips : int
        The most that are skipped in a row.
    reuse : str
        What a skipped step is answered with: ``"output"``, what the transformer gave the last time,
        or ``"residual"``, its latents and the difference of output and latents then. Samplers that
        follow an ODE change the latents without changing what is to be predicted, so that the
        output is nearer (docs/caching.md).
    ratios : MagnitudeRatios, optional
        What ``rainfusion-trt calibrate-cache`` wrote (`ratios.read_ratios`); "mag" needs them.

    Raises
    ------
    InvalidInputError
        A value that cannot be.
    """

    rule: str
    threshold: float = _OF_RULE
    first: float = _OF_RULE
    last: int = 1
    max_skips: int = 3
    reuse: str = "output"
    ratios: MagnitudeRatios | None = None

    def __post_init__(self) -> None:
        if not _is_rule(self.rule):
            raise InvalidInputError(f"cache={shown(self.rule)} is not one of {', '.join(CACHES)}")
        usual = RULES[self.rule]
        for name in ("threshold", "first"):
            if getattr(self, name) is None:
                object.__setattr__(self, name, getattr(usual, name))
        check_threshold(self.threshold)
        if not _is_number(self.first) or not 0.0 <= self.first <= 1.0:
            raise InvalidInputError(
                f"first={shown(self.first)}: give the share of the steps that always run, in [0, 1]"
            )
        for name, least in (("last", 0), ("max_skips", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise InvalidInputError(f"{name}={shown(value)}: give an integer from {least} on")
        if self.reuse not in REUSES:
            raise InvalidInputError(f"reuse={shown(self.reuse)} is not one of {', '.join(REUSES)}")
        if self.ratios is not None and not isinstance(self.ratios, MagnitudeRatios):
            raise InvalidInputError(f"ratios={shown(self.ratios)}: read the file with read_ratios")
        if self.ratios is not None and self.ratios.reuse != self.reuse:
            raise InvalidInputError(
                f"cache_ratios are of the {self.ratios.reuse}, and reuse={self.reuse!r}: calibrate "
                "with that"
            )
        if self.rule == "mag" and self.ratios is None:
            raise InvalidInputError(
                "cache='mag' needs calibrated ratios: write them with `rainfusion-trt "
                "calibrate-cache` and give the file as cache_ratios=, or use cache='easy'"
            )

    def always(self, step: int, steps: int) -> bool:
        """Whether a step, from 0, always runs."""
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 counts as 7.
        return step < math.ceil(round(self.first * steps, 9)) or step >= steps - self.last

    def __str__(self) -> str:
        return (
            f"{self.rule}, threshold {self.threshold:g}, the first {100 * self.first:g} % of the "
            f"steps and the last {self.last} always run, at most {self.max_skips} skipped in a row"
        )


Cache = str | CacheSettings | None


def read_cache(
    cache: Cache,
    threshold: float | None,
    ratios: MagnitudeRatios | None,
    usual: CacheSettings | None = None,
) -> CacheSettings | None:
    """The settings that are meant, None for no cache.

    Parameters
    ----------
    cache
        A name of :data:`CACHES`, or settings; None for `usual`.
    threshold
        Instead of that which they have.
    ratios
        For the rule "mag", where the settings have none.
    usual
        What there is where `cache` is None.

    Raises
    ------
    InvalidInputError
        An unknown name, or values that do not fit together.
    """
    if isinstance(cache, CacheSettings):
        settings: CacheSettings | None = cache
    elif cache is None:
        settings = usual
    elif cache == OFF:
        settings = None
    elif not _is_rule(cache):
        raise InvalidInputError(f"cache={shown(cache)} is not one of {', '.join(CACHES)}")
    else:
        settings = CacheSettings(cache, ratios=ratios if cache == "mag" else None)
    if threshold is None:
        return settings
    if settings is None:
        raise InvalidInputError(
            f"cache_threshold={shown(threshold)} without a cache: give cache='easy' or "
            "cache='mag', or leave it out"
        )
    return replace(settings, threshold=check_threshold(threshold))


def check_threshold(value: Any) -> float:
    """`value` as a float from 0 on.

    Raises
    ------
    InvalidInputError
        It is none.
    """
    if not _is_number(value) or not (math.isfinite(value) and value >= 0.0):
        raise InvalidInputError(
            f"cache_threshold={shown(value)}: give a number from 0 on, 0 skipping no step"
        )
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_rule(value: Any) -> bool:
    return isinstance(value, str) and value in RULES
