"""The package's own operator as a rule, called by itself or through ``rainfusion_trt.enable``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

import rainfusion_trt
from benchmarks.film.rules import Tally
from benchmarks.film.scene import Scene
from benchmarks.operator_calls import WatchOperator
from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import (
    OPERATOR_V1_DEFAULTS,
    AttentionSettings,
    Precision,
)


@dataclass
class OperatorRule:
    """A method of the operator instead of dense attention.

    The tally has one density, in which pseudo-keys count, and the plan's work against that of
    dense attention in the same tiles.
    """

    name: str
    sparsity: float
    scene: Scene
    method: str
    tally: Tally = field(default_factory=Tally)
    precision: Precision = "16bit"

    @property
    def settings(self) -> AttentionSettings:
        """Settings that do not move with Python's defaults."""
        return OPERATOR_V1_DEFAULTS.replace(
            method=self.method, sink_frames=1, precision=self.precision
        )

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        settings = self.settings.replace(text="first").attributes()
        options: dict[str, Any] = {"sparsity": self.sparsity, **settings}
        q, k, v = (x[None] for x in (q, k, v))
        out = rainfusion_trt.rainfusion_attention(q, k, v, self.scene.grid, **options)
        self.count(rainfusion_trt.classify_heads(q, k, self.scene.grid, **options))
        return out[0]

    def count(self, plan: HeadPlan) -> None:
        """Add a call's densities and work to the tally."""
        density, work = float(plan.density.mean()), float(plan.work.mean())
        tokens = self.scene.tokens
        rows, columns = block_shape(self.scene.head_size, self.precision)
        dense = -(-tokens // rows) * rows * -(-tokens // columns) * columns / tokens**2
        self.tally.add(density, density, work / dense)


@dataclass
class EnabledRule(OperatorRule):
    """The same through ``rainfusion_trt.enable``, as a user has it."""

    @contextmanager
    def installed(self, model: nn.Module) -> Iterator[None]:
        """The model's attention replaced, and every call counted."""
        routing = rainfusion_trt.enable(model, **self.settings.record())
        routing.sparsity = self.sparsity
        try:
            with WatchOperator(self.count):
                yield
        finally:
            rainfusion_trt.disable(model)
