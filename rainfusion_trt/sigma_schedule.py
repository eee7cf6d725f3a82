"""Sparsity by how noisy a step is, which means the same for every scheduler and number of steps.

The measure is sigma in [0, 1]: 1 is pure noise, 0 the clip. A latent at sigma is, up to a factor,
``(1 - sigma) * clip + sigma * noise``. Flow matching has it as its normalised timestep; for other
schedulers it is the sigma of the same ratio of noise to clip.

Imports torch only where it computes, so that the command line knows the presets without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from torch import Tensor

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SigmaSchedule:
    """Sparsity as a function of sigma.

    Attributes
    ----------
    sparsity : float or sequence of (sigma, sparsity)
        One value in [0, 1), or points that straight lines join; beyond the first and the last point
        it stays as there. A falling sparsity is ``((0.2, 0.64), (0.9, 0.9))``.
    dense_above : float
        Dense while sigma is larger.
    dense_below : float
        Dense while sigma is smaller.

    Examples
    --------
    >>> SigmaSchedule(0.8, dense_above=0.9).at(torch.tensor([0.95, 0.5])).tolist()
    [0.0, 0.800000011920929]
    """

    sparsity: float | Sequence[tuple[float, float]] = 0.8
    dense_above: float = 0.9
    dense_below: float = 0.0

    def __post_init__(self) -> None:
        for name in ("dense_above", "dense_below"):
            _check_share(name, getattr(self, name))
        if self.dense_above < self.dense_below:
            raise InvalidInputError(
                f"dense_above={self.dense_above} is below dense_below={self.dense_below}, which "
                "leaves no step sparse; pass sparsity=0 for dense attention"
            )
        object.__setattr__(self, "sparsity", _checked(self.sparsity))

    @property
    def points(self) -> Points:
        """Sigma and sparsity of each point, by sigma."""
        if isinstance(self.sparsity, float):
            return ((0.0, self.sparsity),)
        return tuple(self.sparsity)

    @property
    def peak(self) -> float:
        """The largest sparsity of any step."""
        return max(sparsity for _, sparsity in self.points)

    def at(self, sigma: Tensor) -> Tensor:
        """The sparsity at each sigma, float32, on its device and without waiting for it."""
        import torch

        sigma = sigma.float()
        levels, values = (
            torch.tensor(column, dtype=torch.float32, device=sigma.device)
            for column in zip(*self.points, strict=True)
        )
        if len(self.points) == 1:
            sparsity = values.expand_as(sigma)
        else:
            right = torch.searchsorted(levels, sigma).clamp(1, len(self.points) - 1)
            share = (sigma - levels[right - 1]) / (levels[right] - levels[right - 1])
            sparsity = torch.lerp(values[right - 1], values[right], share.clamp(0.0, 1.0))
        is_dense = (sigma > self.dense_above) | (sigma < self.dense_below)
        return torch.where(is_dense, 0.0, sparsity)

    def per_step(
        self, scheduler: Any, steps: int, *, from_sigmas: bool = False
    ) -> tuple[float, ...]:
        """The sparsity of the last `steps` timesteps that a diffusers scheduler was set to.

        Parameters
        ----------
        scheduler
            Of a pipeline.
        steps
            How many it runs.
        from_sigmas
            Whether the pipeline gives the transformer the scheduler's sigmas, of which timesteps
            may be roundings: `VideoModel.timesteps_are_sigmas`.
        """
        import torch

        levels = NoiseLevels.of(scheduler)
        timesteps = torch.as_tensor(scheduler.timesteps).cpu()
        count = len(timesteps)
        if count < steps:
            raise InvalidInputError(
                f"{type(scheduler).__name__} has {count} timesteps for {steps} steps: use "
                "a schedule by steps, such as a function of (step, steps)"
            )
        sigma = levels.sigma(timesteps)
        if from_sigmas:  # behind the last one is that of the finished clip
            sigma = torch.as_tensor(scheduler.sigmas).cpu()[:count]
        return tuple(self.at(sigma[count - steps :]).tolist())

    def __str__(self) -> str:
        ends = " to ".join(dict.fromkeys(f"{sparsity:g}" for _, sparsity in reversed(self.points)))
        below = f" and below {self.dense_below:g}" if self.dense_below > 0.0 else ""
        return f"{ends}, dense above sigma {self.dense_above:g}{below}"


@dataclass(frozen=True)
class NoiseLevels:
    """Sigma of the timesteps of a scheduler.

    Attributes
    ----------
    timesteps : int
        Of the training; the timestep of pure noise.
    table : tuple of float, optional
        Sigma of each of them; None where sigma is their share.
    """

    timesteps: int
    table: tuple[float, ...] | None = None

    @classmethod
    def of(cls, scheduler: Any) -> NoiseLevels:
        """Those of a diffusers scheduler.

        Raises
        ------
        UnsupportedError
            It has neither flow matching's timesteps nor ``alphas_cumprod``, or others than those of
            the training.
        """
        config = getattr(scheduler, "config", {})
        steps = config.get("num_train_timesteps")
        kind = type(scheduler).__name__
        if steps is not None and (kind.startswith("FlowMatch") or config.get("use_flow_sigmas")):
            return cls(steps)
        alphas = getattr(scheduler, "alphas_cumprod", None)
        # Continuous ones are a quarter of the logarithm of the noise.
        if alphas is None or config.get("timestep_type") == "continuous":
            raise UnsupportedError(
                f"{kind} does not say how noisy its timesteps are, which presets and schedules by "
                "sigma need; pass a schedule by steps, or another scheduler"
            )
        signal, noise = alphas.double().sqrt(), (1 - alphas.double()).clamp(min=0).sqrt()
        return cls(len(alphas), tuple((noise / (signal + noise)).tolist()))

    def sigma(self, timestep: Tensor) -> Tensor:
        """float32, of each timestep, which may lie between those of the training."""
        import torch

        timestep = timestep.float()
        if self.table is None:
            return timestep / self.timesteps
        table = torch.tensor(self.table, dtype=torch.float32, device=timestep.device)
        place = timestep.clamp(0, len(self.table) - 1)
        left = place.floor().long()
        right = place.ceil().long()
        return torch.lerp(table[left], table[right], place - left)


def _checked(sparsity: Any) -> float | Points:
    if isinstance(sparsity, Real):
        return _check_sparsity(sparsity)
    try:
        points = tuple((float(sigma), float(value)) for sigma, value in sparsity)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"sparsity={sparsity!r} must be a number in [0, 1), or points (sigma, sparsity)"
        ) from None
    levels = [_check_share("sigma", sigma) for sigma, _ in points]
    for _, value in points:
        _check_sparsity(value)
    if not points or levels != sorted(set(levels)):
        raise InvalidInputError(
            f"sparsity={sparsity!r} must have one or more points (sigma, sparsity), each sigma "
            "above that of the point before"
        )
    return points


def _check_sparsity(value: Any) -> float:
    if isinstance(value, bool) or not 0.0 <= value < 1.0:
        raise InvalidInputError(f"sparsity={value} must be in [0, 1); 0 is dense")
    return float(value)


def _check_share(name: str, value: Any) -> float:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not 0.0 <= float(value) <= 1.0:
        raise InvalidInputError(f"{name}={value!r} must be in [0, 1]; 1 is pure noise")
    return float(value)
