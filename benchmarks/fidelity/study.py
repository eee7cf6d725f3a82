"""Run every configuration over all seeds and score it against the dense videos."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any

import torch
from torch import Tensor

from benchmarks.fidelity.configs import BASELINES, KIND_MAP, MAIN_SPARSITY, Config
from benchmarks.fidelity.metrics import Score, Scorer
from benchmarks.fidelity.rules import rule_for
from benchmarks.fidelity.sampling import Result, Sampler
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import Kind

logger = logging.getLogger("rainfusion_trt.fidelity")

Row = dict[str, Any]
KEPT_SEEDS = 2  # videos of a configuration that pictures may show
KEPT = {  # latents that are brought back, by the name that pictures look for
    Config("methods", "rainfusion", MAIN_SPARSITY): "rainfusion",
    Config("methods", "rainfusion2", MAIN_SPARSITY): "rainfusion2",
    **{Config("baselines", method, MAIN_SPARSITY): method for method in BASELINES},
}
_NAMED_KINDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)


class Study:
    """Runs configurations and keeps what tables and pictures need.

    Attributes
    ----------
    rows : list of dict
        One a finished configuration.
    kept : dict of str to Tensor
        Small tensors for pictures: latents float16 [seeds, T, C, h, w], and ``kinds``, int32
        [steps, layers, heads, kinds], how many seeds' heads were of each kind.
    """

    def __init__(self, sampler: Sampler, workers: int) -> None:
        self.sampler = sampler
        self.rows: list[Row] = []
        sampler.dense()  # the first run also loads kernels and libraries
        started = time.monotonic()
        dense = sampler.dense()
        logger.info("dense: %.1f s for %d videos", time.monotonic() - started, len(dense))
        self.kept: dict[str, Tensor] = {"dense": _small(dense)}
        self._shares: dict[float, float] = {}
        self._scorer = Scorer(sampler.folder / "vae", dense, workers)
        self._open: list[tuple[Row, Sequence[Future[Score]]]] = []

    def run(self, configs: Iterable[Config], seconds: float) -> list[Config]:
        """Run configurations for a time; returns those there was no time for."""
        end = time.monotonic() + seconds
        left = []
        for config in configs:
            if time.monotonic() > end:
                left.append(config)
                continue
            started = time.monotonic()
            result = self._sample(config)
            row = _row(config, result, self.sampler.steps)
            row["seconds"] = round(time.monotonic() - started, 2)
            self._open.append((row, self._scorer.submit(result.latents)))
            logger.info("%s: density %.3f, %.1f s", config.name, row["density"], row["seconds"])
        return left

    def finish(self) -> None:
        """Wait for the scores and fill `rows`."""
        try:
            for row, futures in self._open:
                self.rows.append(row | scores([future.result() for future in futures]))
            self._open.clear()
        finally:
            self._scorer.close()

    def _sample(self, config: Config) -> Result:
        sampler = self.sampler
        if config.in_operator:
            result = sampler.operator(config)
        else:
            share = self._shares.get(config.sparsity)
            layout = sampler.layout(config.sink_frames)
            rule = rule_for(config, layout, sampler.block_shape, share, sampler.device)
            result = sampler.masked(config, rule)
        if config == Config("methods", "rainfusion", config.sparsity):
            share = result.sparse_density
            if share is not None:
                self._shares[config.sparsity] = share
        if config in KEPT:
            self.kept[KEPT[config]] = _small(result.latents)
        if config == KIND_MAP:
            counts = torch.stack([(result.kinds == kind).sum(2) for kind in Kind], -1)
            self.kept["kinds"] = counts.int()
        return result


def _small(latents: Tensor) -> Tensor:
    return latents[:KEPT_SEEDS].half().contiguous()


def _row(config: Config, result: Result, steps: int) -> Row:
    dense = result.dense_steps / steps
    row: Row = {
        "group": config.group,
        "method": config.method,
        "sparsity": config.sparsity,
        "dense_fraction": config.dense_fraction,
        "sink_frames": config.sink_frames,
        "alpha": config.alpha,
        "density": round(result.density, 4),
    }
    if config.method not in BASELINES:
        row["nominal_density"] = round(dense + (1 - dense) * (1 - config.sparsity), 4)
    if result.sparse_density is not None:
        row["sparse_density"] = round(result.sparse_density, 4)
        # The other baselines' codes are no kinds.
        if config.method not in BASELINES or config.method == "svg":
            sparse = result.kinds[result.dense_steps :]
            for kind in _NAMED_KINDS:
                row[kind.name.lower()] = round((sparse == kind).double().mean().item(), 4)
    return row


def scores(found: Sequence[Score]) -> Row:
    """Means, deviations and every seed."""
    if not found:
        raise InvalidInputError("no seeds")
    values = torch.tensor([[score.psnr, score.ssim] for score in found], dtype=torch.double)
    psnr, ssim = values.unbind(1)
    return {
        "seeds": len(found),
        "psnr": round(psnr.mean().item(), 3),
        "psnr_std": round(psnr.std(correction=0).item(), 3),
        "psnr_min": round(psnr.min().item(), 3),
        "ssim": round(ssim.mean().item(), 4),
        "ssim_std": round(ssim.std(correction=0).item(), 4),
        "psnr_per_seed": [round(value, 3) for value in psnr.tolist()],
        "ssim_per_seed": [round(value, 4) for value in ssim.tolist()],
    }
