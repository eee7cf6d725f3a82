"""Engines inside a pipeline that several processes run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rainfusion_trt.operator.native import load_library
from rainfusion_trt.parallel.denoiser import ParallelDenoiser
from rainfusion_trt.parallel.exchange import Exchange
from rainfusion_trt.runtime.denoiser import After, Before
from rainfusion_trt.runtime.report import CallReport
from rainfusion_trt.step_cache.cache import StepCache


class ParallelGraphDenoiser(ParallelDenoiser):
    """Engines whose tokens, guidance or both are shared by a team.

    The engines exchange tokens themselves, by the communicator that this makes for them.
    """

    exchange: Exchange | None = None

    def _share_tokens(self) -> None:
        self.exchange = Exchange(self.team, load_library())
        for transformer in self._transformers:
            transformer.share_tokens(self.exchange)

    @contextmanager
    def observe(
        self, before: Before, after: After, cache: StepCache | None = None
    ) -> Iterator[None]:
        """As of one process; at the end all that was enqueued has ended, and nothing failed."""
        with super().observe(before, after, cache):
            yield
        if self.exchange is not None:
            self.exchange.finish()

    def _of_all_heads(self, report: CallReport) -> CallReport:
        return report

    def close(self) -> None:
        self.alone.close()  # its graphs hold the communicator
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None
