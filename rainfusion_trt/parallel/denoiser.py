"""A PyTorch transformer inside a pipeline that several processes run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist

from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.parallel.guidance import GuidanceGroups
from rainfusion_trt.parallel.spread import check_spread, spread, unspread
from rainfusion_trt.parallel.team import Team
from rainfusion_trt.routing.compiled import keep_order
from rainfusion_trt.routing.parallel import Ulysses
from rainfusion_trt.routing.switch import routing_of
from rainfusion_trt.runtime.denoiser import After, Before, Denoiser
from rainfusion_trt.runtime.report import CallReport
from rainfusion_trt.step_cache.cache import StepCache


class ParallelDenoiser(Denoiser):
    """A denoiser of PyTorch whose tokens, guidance or both are shared by a team.

    Parameters
    ----------
    alone
        The denoiser of this process, its transformers enabled.
    model
        What they are.
    team
        The processes.
    """

    def __init__(self, alone: Denoiser, model: VideoModel, team: Team) -> None:
        self.alone = alone
        self.team = team
        self.name, self.sparse = alone.name, alone.sparse
        self.precisions = alone.precisions
        self._transformers = alone.components
        self._spread = False
        self._groups: tuple[GuidanceGroups, ...] = ()
        if team.config.guidance > 1:  # which may refuse the model, before there is what to undo
            pair = team.mesh["guidance"].get_group()
            self._groups = tuple(GuidanceGroups(t, model, pair) for t in self._transformers)
        if team.config.ulysses > 1:
            self._share_tokens()

    def _share_tokens(self) -> None:
        groups = 2 if self.team.config.overlap else 1
        for transformer in self._transformers:
            routing = routing_of(transformer)
            assert routing is not None  # the torch backend enables what it loads
            spread(routing, transformer, self.team.mesh, head_groups=groups)
            if self.team.config.overlap:
                keep_order(routing)
        self._spread = True

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.alone.device

    @property
    def component(self) -> Any:
        return self.components[0]

    @property
    def components(self) -> tuple[Any, ...]:
        return self._groups or self._transformers

    def set_sparsity(self, value: float) -> None:
        self.alone.set_sparsity(value)

    def set_precision(self, value: Precision) -> None:
        self.alone.set_precision(value)

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return self.alone.dense_layers

    def keep_dense(self, layers: Sequence[int]) -> None:
        self.alone.keep_dense(layers)

    @contextmanager
    def observe(
        self, before: Before, after: After, cache: StepCache | None = None
    ) -> Iterator[None]:
        """Hooks around the calls that this process computes; density is that of all heads."""
        if self._spread:
            for transformer in self._transformers:
                check_spread(transformer)
        for group in self._groups:
            group.begin()
        with self.alone.observe(before, lambda report: after(self._of_all_heads(report)), cache):
            yield

    def _of_all_heads(self, report: CallReport) -> CallReport:
        if report.density is None or not self._spread:
            return report
        transformer = self._transformers[0]
        routing = routing_of(transformer)
        assert routing is not None
        ulysses = Ulysses.of(transformer._parallel_config)
        assert ulysses is not None
        heads = ulysses.sizes(routing.sites[0].attention.heads)
        density = report.density * (heads[ulysses.rank] / sum(heads))
        dist.all_reduce(density, group=ulysses.group)
        return replace(report, density=density)

    def describe(self) -> str:
        config = self.team.config
        return (
            f"{self.alone.describe()}; {self.team.world} processes, "
            f"ulysses={config.ulysses}, guidance={config.guidance}"
            f"{', overlap' if config.overlap else ''}"
        )

    def close(self) -> None:
        if self._spread:
            for transformer in self._transformers:
                unspread(transformer)
            self._spread = False
        self.alone.close()
