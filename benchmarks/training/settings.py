"""Settings that decide the result of a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rainfusion_trt.errors import InvalidInputError


@dataclass(frozen=True)
class Settings:
    """Settings that decide the result of a run. A checkpoint resumes only with the same ones.

    Attributes
    ----------
    steps : int
        Optimiser steps of the whole run, which the learning rate's decay (cosine) is laid out for.
    batch : int
        Windows a step.
    lr : float
        Largest learning rate, after the warm-up.
    warmup : int
        Steps until then.
    seed : int
        Seed of weights, windows, timesteps and noise.
    ema : float
        Decay of the moving average; less in the first steps.
    unconditional : float
        Share of samples with the empty prompt, for classifier-free guidance.
    """

    steps: int = 6000
    batch: int = 8
    lr: float = 1e-3
    warmup: int = 200
    seed: int = 0
    ema: float = 0.999
    unconditional: float = 0.1

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)} must be 1 or more")
        if not self.lr > 0 or self.warmup < 0:
            raise InvalidInputError(f"lr={self.lr}, warmup={self.warmup}: give positive numbers")
        for name in ("ema", "unconditional"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)} must be in [0, 1)")

    def learning_rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        rise = min(1.0, (step + 1) / (self.warmup + 1))
        return self.lr * rise * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
