"""Presets: a method, a sparsity and a schedule under a name that says what one gets.

The one table. The sparsities are those of docs/film.md, whose errors ``docs/usage.md`` repeats.

Their schedules go by sigma. A distilled checkpoint of 4 to 8 steps has about half of them above the
limit, which `Pipeline` says in a line; ``dense_fraction=`` beside the preset counts steps instead.
"""

from __future__ import annotations

from dataclasses import dataclass

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import Method
from rainfusion_trt.sigma_schedule import SigmaSchedule

# The paper has the first tenth of the steps dense, in which the layout of the video is decided.
_DENSE_ABOVE = 0.9


@dataclass(frozen=True)
class Preset:
    """What a preset sets.

    Attributes
    ----------
    method : str
        Of the operator.
    schedule : SigmaSchedule
        Sparsity of each step.
    dense_layers : tuple of int
        Self-attentions, numbered from 0, that stay dense in every step.
    """

    method: Method
    schedule: SigmaSchedule
    dense_layers: tuple[int, ...] = ()


PRESETS: dict[str, Preset] = {
    "quality": Preset("piecewise", SigmaSchedule(0.64, dense_above=_DENSE_ABOVE)),
    "balanced": Preset("piecewise", SigmaSchedule(0.8, dense_above=_DENSE_ABOVE)),
    "fast": Preset("piecewise", SigmaSchedule(0.9, dense_above=_DENSE_ABOVE)),
}


def preset_of(name: str | None) -> Preset | None:
    """The preset of a name; None for none.

    Raises
    ------
    InvalidInputError
        There is none of that name.
    """
    if name is None:
        return None
    try:
        return PRESETS[name]
    except (KeyError, TypeError):
        raise InvalidInputError(f"preset={name!r} is not one of {', '.join(PRESETS)}") from None
