"""How sparse each denoising step is."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.presets import Preset
from rainfusion_trt.sigma_schedule import NoiseLevels, SigmaSchedule

Schedule = Callable[[int, int], float] | Iterable[float] | SigmaSchedule


@dataclass(frozen=True)
class SparsitySchedule:
    """The first steps dense, the others at one sparsity.

    The layout of the video is decided in the first steps, where sparse attention costs most
    quality (RainFusion, arXiv 2505.21036, section 4: 50 % sparsity, the first 10 % dense).

    Attributes
    ----------
    sparsity : float
        Share of the video-video token pairs left out, in [0, 1); 0 is dense.
    dense_fraction : float
        Share of the steps, rounded up, that run dense at the start, in [0, 1].
    """

    sparsity: float = 0.5
    dense_fraction: float = 0.1

    def __post_init__(self) -> None:
        check_sparsity(self.sparsity, "sparsity")
        if not _is_number(self.dense_fraction) or not 0.0 <= self.dense_fraction <= 1.0:
            raise InvalidInputError(
                f"dense_fraction is {shown(self.dense_fraction)}: give the share of dense steps, "
                "in [0, 1]"
            )

    @property
    def peak(self) -> float:
        """The largest sparsity of any step."""
        return self.sparsity

    def dense_steps(self, steps: int) -> int:
        """Number of dense steps at the start of a run of `steps` steps."""
        # Rounded first, so that 0.07 * 100 = 7.000000000000001 counts as 7.
        return math.ceil(round(self.dense_fraction * steps, 9))

    def __call__(self, step: int, steps: int) -> float:
        return 0.0 if step < self.dense_steps(steps) else self.sparsity


def check_sparsity(value: float, name: str) -> float:
    """`value` as a float in [0, 1).

    Raises
    ------
    InvalidInputError
        It is not a number or outside.
    """
    if not _is_number(value):
        raise InvalidInputError(f"{name} is {shown(value)}: give a number in [0, 1), 0 being dense")
    if not 0.0 <= value < 1.0:  # also false for NaN
        raise InvalidInputError(f"{name} is {value}: it has to be in [0, 1), 0 being dense")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def choose_schedule(
    preset: Preset | None,
    sparsity: float | None,
    dense_fraction: float | None,
    schedule: Schedule | None,
) -> Schedule:
    """The schedule of a `Pipeline`: what was given goes before what a preset says.

    Parameters
    ----------
    preset : Preset, optional
        Its schedule, with `sparsity` in it if given; or with `dense_fraction`, its sparsity by
        steps.
    sparsity, dense_fraction : float, optional
        By default those of the preset, else those of `SparsitySchedule`.
    schedule : Schedule, optional
        Instead of all others.
    """
    if schedule is not None:
        return read_schedule(schedule)
    if preset is not None and dense_fraction is None:
        return preset.schedule if sparsity is None else with_sparsity(preset.schedule, sparsity)
    if preset is not None and sparsity is None:
        sparsity = preset.schedule.peak
    given = {"sparsity": sparsity, "dense_fraction": dense_fraction}
    return SparsitySchedule(**{k: v for k, v in given.items() if v is not None})


def with_sparsity(schedule: SigmaSchedule, sparsity: float) -> SigmaSchedule:
    """`schedule` at one sparsity wherever it is not dense."""
    return dataclasses.replace(schedule, sparsity=check_sparsity(sparsity, "sparsity"))


def read_schedule(
    schedule: Schedule,
) -> Callable[[int, int], float] | tuple[float, ...] | SigmaSchedule:
    """A schedule that can be read again and again: a function, or values that are checked.

    Parameters
    ----------
    schedule : callable or iterable of float
        Also an iterator, which is used up here, a NumPy array or a tensor.

    Raises
    ------
    InvalidInputError
        Neither a function nor numbers in [0, 1), or no values at all.
    """
    if callable(schedule) or isinstance(schedule, SigmaSchedule):
        return schedule
    values: Any = schedule.tolist() if hasattr(schedule, "tolist") else schedule
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise InvalidInputError(
            f"schedule is {shown(schedule)}: give one sparsity per step, or a function of "
            "(step, steps)"
        )
    checked = tuple(check_sparsity(v, f"sparsity of step {i}") for i, v in enumerate(values))
    if not checked:
        raise InvalidInputError(
            "the schedule has no values: give one per step, or leave it out for the default"
        )
    return checked


def planned_sparsity(
    schedule: Schedule, pipe: Any, *, from_sigmas: bool = False
) -> tuple[float, ...]:
    """The sparsity of every step of a diffusers pipeline whose scheduler has its timesteps.

    `from_sigmas` is that of `SigmaSchedule.per_step`.
    """
    if isinstance(schedule, SigmaSchedule):
        return schedule.per_step(pipe.scheduler, pipe.num_timesteps, from_sigmas=from_sigmas)
    return sparsity_per_step(schedule, pipe.num_timesteps)


def foreseen(
    schedule: Schedule, pipe: Any, steps: int
) -> tuple[tuple[float, ...] | SigmaSchedule, float, str]:
    """The sparsity of a run of `steps` steps, the largest of it, and all of it in few words.

    A schedule by sigma is its own plan: timesteps are known later.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The schedule does not fit these steps, or this scheduler.
    """
    if isinstance(schedule, SigmaSchedule):
        NoiseLevels.of(pipe.scheduler)
        return schedule, schedule.peak, str(schedule)
    planned = sparsity_per_step(schedule, steps)
    return planned, max(planned, default=0.0), summary(planned)


def shortfall(schedule: Schedule, planned: Sequence[float]) -> str | None:
    """Why a schedule leaves so many of these steps dense that it saves little, in one line.

    Parameters
    ----------
    schedule : Schedule
        One that is a rule; who gives a value for each step has chosen them.
    planned : sequence of float
        The sparsity that it has in each step.
    """
    dense, steps = sum(value == 0.0 for value in planned), len(planned)
    if isinstance(schedule, SigmaSchedule) and schedule.peak > 0.0 and 2 * dense >= steps:
        return (
            f"{dense} of {steps} steps are dense, since so few steps lie mostly where the schedule "
            f"({schedule}) has none sparse, and little time is saved: give dense_fraction= beside "
            "the preset, which counts steps, or a SigmaSchedule with a larger dense_above"
        )
    if isinstance(schedule, SparsitySchedule) and schedule.peak > 0.0 and dense == steps:
        return (
            f"{dense} of {steps} steps are dense, by dense_fraction={schedule.dense_fraction:g}, "
            "and no time is saved: give a smaller dense_fraction, or more steps"
        )
    return None


def sparsity_per_step(
    schedule: Callable[[int, int], float] | Iterable[float], steps: int
) -> tuple[float, ...]:
    """The sparsity of every step, checked.

    Parameters
    ----------
    schedule : callable or iterable of float
        Called as ``schedule(step, steps)`` for each step from 0, or one value per step.
    steps : int
        Number of denoising steps.

    Returns
    -------
    tuple of float
        `steps` values in [0, 1).

    Raises
    ------
    InvalidInputError
        A value is outside [0, 1), or a sequence has another length.
    """
    if callable(schedule):
        values: Sequence[float] = [schedule(step, steps) for step in range(steps)]
    else:
        values = tuple(schedule)
    if len(values) != steps:
        raise InvalidInputError(
            f"the schedule has {len(values)} values for {steps} steps: give one value per step, "
            "or a function of (step, steps)"
        )
    return tuple(check_sparsity(v, f"sparsity of step {i}") for i, v in enumerate(values))


def summary(values: Sequence[float]) -> str:
    """Runs of equal values in few words, as in ``"5 x 0, 45 x 0.5"``."""
    if sum(1 for _ in itertools.groupby(values)) > 6:
        return f"{len(values)} steps, {min(values):g} to {max(values):g}"
    return runs_in_words([f"{value:g}" for value in values])


def runs_in_words(names: Sequence[str]) -> str:
    """Runs of equal names, as in ``"5 x 16bit, 45 x 8bit"``."""
    runs = ((name, sum(1 for _ in run)) for name, run in itertools.groupby(names))
    return ", ".join(f"{count} x {name}" for name, count in runs)
