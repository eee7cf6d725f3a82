"""``MagnitudeRatios``: what the rule "mag" knows of a model, a scheduler and a number of steps."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields

_FORMAT = "rainfusion-trt cache ratios 1"
_REMEDY = "write it anew with `rainfusion-trt calibrate-cache`"

# How far a timestep may lie from the calibrated one, as a share of the first one: roundings, not
# another shift.
_NEAR = 1e-3


@dataclass(frozen=True)
class MagnitudeRatios:
    """By how much the length of what is reused grows from one step to the next.

    Attributes
    ----------
    model : str
        Registry name.
    scheduler : str
        Class name in diffusers.
    timesteps : tuple of float
        Of every step, as the scheduler has them.
    boundary : float or None
        Where a pipeline of two transformers changes them (its `boundary_ratio`).
    ratios : tuple of (float or None)
        For every step, mean of ``|r_i| / |r_(i-1)|``; None where there is no step before, or
        another transformer made it.
    prompts : int
        How many generations it is the mean of.
    reuse : str
        What r is: ``"output"``, or ``"residual"``, output minus noisy latents.
    """

    model: str
    scheduler: str
    timesteps: tuple[float, ...]
    boundary: float | None
    ratios: tuple[float | None, ...]
    prompts: int = 1
    reuse: str = "output"

    @classmethod
    def read(cls, given: MagnitudeRatios | str | Path | None) -> MagnitudeRatios | None:
        """What is given, read if it is a path."""
        if isinstance(given, (str, Path)):
            return read_ratios(given)
        if given is not None and not isinstance(given, MagnitudeRatios):
            raise InvalidInputError(
                f"cache_ratios={shown(given)}: give the file that `rainfusion-trt calibrate-cache` "
                "wrote"
            )
        return given

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.ratios)

    def check_model(self, model: str) -> None:
        """Raise InvalidInputError for another model than this one."""
        if model != self.model:
            raise InvalidInputError(
                f"cache_ratios are of {self.model}, and the model here is {model}: {_REMEDY}"
            )

    def check_steps(self, steps: int, remedy: str) -> None:
        """Raise InvalidInputError for a run of other steps; `remedy` says how to have as many."""
        if steps != self.steps:
            raise InvalidInputError(
                f"cache_ratios are of {self.steps} steps of {self.scheduler}, and this run has "
                f"{steps}: {remedy}, or {_REMEDY}"
            )

    def check_pipe(self, pipe: Any) -> None:
        """Raise InvalidInputError for another scheduler, or experts that change elsewhere."""
        scheduler, boundary = type(pipe.scheduler).__name__, pipe.config.get("boundary_ratio")
        if scheduler != self.scheduler:
            raise InvalidInputError(
                f"cache_ratios are of {self.scheduler}, and the scheduler here is {scheduler}: "
                f"{_REMEDY}"
            )
        if boundary != self.boundary:
            raise InvalidInputError(
                f"cache_ratios are of boundary_ratio {self.boundary}, and the pipeline's is "
                f"{boundary}: {_REMEDY}"
            )

    def check_timesteps(self, timesteps: tuple[float, ...]) -> None:
        """Raise InvalidInputError for others, such as those of another shift or strength."""
        known = self.timesteps
        far = max(
            (abs(mine - other) for mine, other in zip(known, timesteps, strict=False)), default=0.0
        )
        if len(known) != len(timesteps) or far > _NEAR * abs(known[0]):
            raise InvalidInputError(
                f"cache_ratios are of timesteps from {known[0]:g} to {known[-1]:g} that lie up to "
                f"{far:g} from those of this run: calibrate with its shift, size and strength"
            )

    def text(self) -> str:
        """The file: JSON, with a hash that tells whether somebody has changed it."""
        body = {"format": _FORMAT, **asdict(self)}
        return json.dumps({**body, "sha256": _digest(body)}, indent=1) + "\n"


def read_ratios(path: str | Path) -> MagnitudeRatios:
    """Those of a file that ``rainfusion-trt calibrate-cache`` wrote.

    Raises
    ------
    InvalidInputError
        No such file, or not of this kind.
    """
    from pydantic import TypeAdapter, ValidationError

    body = _read(Path(path))
    try:
        made = TypeAdapter(MagnitudeRatios).validate_json(json.dumps(body), strict=True)
    except ValidationError as error:
        raise InvalidInputError(
            f"cache_ratios {path} cannot be read ({explain_fields(error)}): {_REMEDY}"
        ) from error
    ratios = [ratio for ratio in made.ratios if ratio is not None]
    if not made.ratios or len(made.ratios) != len(made.timesteps):
        raise InvalidInputError(
            f"cache_ratios {path} have {len(made.ratios)} ratios for {len(made.timesteps)} "
            f"timesteps: {_REMEDY}"
        )
    if not all(map(math.isfinite, (*made.timesteps, *ratios))) or min(ratios, default=1.0) <= 0.0:
        raise InvalidInputError(
            f"cache_ratios {path} have numbers that are not finite, or ratios that are not above "
            f"0: {_REMEDY}"
        )
    return made


def is_ours(path: Path) -> bool:
    """Whether a file is as it was written."""
    try:
        body = _read(path)
    except InvalidInputError:
        return False
    said = body.pop("sha256", None)
    return said == _digest(body)


def _read(path: Path) -> dict[str, Any]:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(
            f"cache_ratios {path} cannot be read ({error.strerror or error}): {_REMEDY}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(f"cache_ratios {path} are no JSON ({error}): {_REMEDY}") from error
    if not isinstance(body, dict) or body.get("format") != _FORMAT:
        raise InvalidInputError(f"cache_ratios {path} are not of {_FORMAT!r}: {_REMEDY}")
    known = {"format", "sha256", *(field.name for field in fields(MagnitudeRatios))}
    return {name: value for name, value in body.items() if name in known}


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
