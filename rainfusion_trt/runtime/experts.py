"""Several transformers that take turns within one generation (Wan 2.2 A14B)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.runtime.denoiser import After, Before, Denoiser
from rainfusion_trt.step_cache.cache import StepCache


class ExpertsDenoiser(Denoiser):
    """Denoisers of one backend as one; the diffusers pipeline calls the one whose turn it is.

    Parameters
    ----------
    experts
        In the order of the model's components.
    """

    def __init__(self, experts: Sequence[Denoiser]) -> None:
        self.experts = tuple(experts)
        first = self.experts[0]
        self.name, self.device, self.sparse = first.name, first.device, first.sparse
        self.precisions = tuple(
            p for p in first.precisions if all(p in expert.precisions for expert in self.experts)
        )
        self.component = first.component

    @property
    def components(self) -> tuple[Any, ...]:
        return tuple(expert.component for expert in self.experts)

    def set_sparsity(self, value: float) -> None:
        for expert in self.experts:
            expert.set_sparsity(value)

    def set_precision(self, value: Precision) -> None:
        super().set_precision(value)
        for expert in self.experts:
            expert.set_precision(value)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return self.experts[0].dense_layers

    def keep_dense(self, layers: Sequence[int]) -> None:
        for expert in self.experts:
            expert.keep_dense(layers)

    @contextmanager
    def observe(
        self, before: Before, after: After, cache: StepCache | None = None
    ) -> Iterator[None]:
        with ExitStack() as stack:
            for expert in self.experts:
                stack.enter_context(expert.observe(before, after, cache))
            yield

    def describe(self) -> str:
        return "; ".join(expert.describe() for expert in self.experts)

    def close(self) -> None:
        for expert in self.experts:
            expert.close()
