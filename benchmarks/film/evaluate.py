"""Sparse against dense attention on held-out shots, at the same noise."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.film.catalogue import Entry
from benchmarks.film.data import Shot
from benchmarks.film.latents import Latents
from benchmarks.film.model import Attending, Attention, Rotary, velocity
from benchmarks.film.product import EnabledRule
from benchmarks.film.report import Report
from benchmarks.film.rules import Rule
from benchmarks.film.scene import Scene

logger = logging.getLogger(__name__)
TIMES = (0.9, 0.6, 0.3)
MEASURES = ("velocity", "loss", "flicker")
Metrics = tuple[float, float, float]


@dataclass(frozen=True)
class Case:
    """Latents of a held-out shot from frame ``start`` on, at time ``t`` of the noise."""

    shot: int
    start: int
    t: float


def make_cases(held: Sequence[Shot], frames: int, shots: int, clips: int = 1) -> list[Case]:
    """Some held-out shots, spread evenly, crossed with the times.

    Parameters
    ----------
    clips
        Most clips of one shot. They lie in the middles of equal parts of it and share no frame.
    """
    long = [i for i, shot in enumerate(held) if len(shot) >= frames]
    if not long:
        raise ValueError(f"no held-out shot has {frames} frames")
    count = min(shots, len(long))
    cases = []
    for i in (long[n * len(long) // count] for n in range(count)):
        parts = min(clips, len(held[i]) // frames)
        size = len(held[i]) // parts
        for part in range(parts):
            start = held[i].start + part * size + (size - frames) // 2
            cases += [Case(i, start, t) for t in TIMES]
    return cases


class Evaluator:
    """Runs the model on this process's cases; the dense results are kept."""

    def __init__(
        self,
        model: nn.Module,
        scene: Scene,
        latents: Latents,
        rotary: Rotary,
        text: Tensor,
        cases: Sequence[Case],
        seed: int,
    ):
        self.model, self.scene, self.latents, self.rotary = model, scene, latents, rotary
        self.text, self.cases, self.seed = text, cases, seed
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = text.device
        self.dtype = next(model.parameters()).dtype
        self.mine = [i for i in range(len(cases)) if i % self.world == self.rank]
        self.dense = {i: self.run(dense_attention, cases[i]) for i in self.mine}

    @torch.no_grad()
    def run(self, attention: Attention, case: Case) -> tuple[Tensor, float]:
        """The velocity [T, 32, h, w], and its squared error against the truth."""
        if isinstance(attention, EnabledRule):
            with attention.installed(self.model):
                return self.forward(case)
        with Attending(attention, self.scene.tokens) as mode:
            result = self.forward(case)
        if mode.calls != self.scene.layers:
            raise RuntimeError(f"{mode.calls} attentions seen, not {self.scene.layers}")
        return result

    @torch.no_grad()
    def forward(self, case: Case) -> tuple[Tensor, float]:
        """The same with the attention that the model has."""
        x = self.latents.sequence(case.start, self.scene.grid[0])[None]
        generator = torch.Generator().manual_seed(self.seed * 100_000 + case.start)
        noise = torch.randn(x.shape, generator=generator).to(self.device)
        noisy = ((1 - case.t) * x + case.t * noise).to(self.dtype)
        t = torch.tensor([case.t], device=self.device)
        out = velocity(self.model, noisy, t, self.text[-1:].to(self.dtype), self.rotary)
        return out[0].float(), float(F.mse_loss(out.float(), noise - x))

    def measure(self, rule: Rule) -> dict[str, Any]:
        """All cases under a rule: means, standard errors, densities, and every case."""
        begin = time.monotonic()
        values = torch.zeros(len(self.cases), len(MEASURES), dtype=torch.float64)
        torch.manual_seed(self.seed + 7919 * self.rank)
        for i in self.mine:
            velocity_, loss = self.run(rule, self.cases[i])
            values[i] = torch.tensor(compare(velocity_, loss, *self.dense[i]))
        kinds = sorted({kind for part in gather(rule.tally.kinds) for kind in part})
        counts = [float(rule.tally.kinds.get(kind, 0)) for kind in kinds]
        sums = total([*values.flatten().tolist(), *rule.tally.sums, *counts], self.device)
        cells = values.numel()
        table = torch.tensor(sums[:cells]).view(values.shape).T.tolist()
        real, everything, work, calls = sums[cells : cells + 4]
        result: dict[str, Any] = {"rule": rule.name, "sparsity": rule.sparsity}
        for name, column in zip(MEASURES, table, strict=True):
            result[name] = summary(column, [case.shot for case in self.cases])
        result |= {
            "density": real / calls,
            "density_with_pseudo_keys": everything / calls,
            "tiles": work / calls,
            "seconds": time.monotonic() - begin,
        }
        if kinds:
            result["kinds"] = dict(zip(kinds, sums[cells + 4 :], strict=True))
        return result

    def dense_loss(self) -> list[float]:
        """Squared error of dense attention, per case."""
        losses = [0.0] * len(self.cases)
        for i in self.mine:
            losses[i] = self.dense[i][1]
        return total(losses, self.device)


def dense_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The attention that rules are compared with."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def compare(sparse: Tensor, loss: float, dense: Tensor, dense_loss: float) -> Metrics:
    """Relative error of the velocity, rise of the loss, relative error between frames."""
    error = (sparse - dense).norm() / dense.norm()
    steps, dense_steps = sparse.diff(dim=0), dense.diff(dim=0)
    flicker = (steps - dense_steps).norm() / dense_steps.norm()
    return float(error), loss / dense_loss - 1, float(flicker)


def summary(values: Sequence[float], shots: Sequence[int]) -> dict[str, Any]:
    """Mean, its standard error over cases and over the means of shots, and the values."""
    groups: dict[int, list[float]] = {}
    for value, shot in zip(values, shots, strict=True):
        groups.setdefault(shot, []).append(value)
    means = [statistics.fmean(group) for group in groups.values()]
    return {
        "mean": statistics.fmean(values),
        "stderr": _stderr(values),
        "stderr_of_shots": _stderr(means),
        "cases": [round(value, 6) for value in values],
    }


def _stderr(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over processes."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()


def gather(value: Any) -> list[Any]:
    """One object of every process."""
    objects: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(objects, value)
    return objects


def compare_rules(
    evaluator: Evaluator, entries: Iterable[Entry], report: Report, until: float
) -> bool:
    """Measure rules until the time (monotonic) is up, and write the report after each.

    Rules that the report holds already are skipped.

    Returns
    -------
    bool
        Whether all rules have been measured.
    """
    device, longest = evaluator.device, 0.0
    done = {(r["rule"], r["sparsity"]) for r in report.rows}
    for entry in entries:
        if (entry.name, entry.sparsity) in done:
            continue
        late = time.monotonic() + longest > until
        if total([float(late)], device)[0]:
            logger.info("out of time before %s at s = %s", entry.name, entry.sparsity)
            return False
        result = evaluator.measure(entry.make())
        longest = max(longest, result["seconds"])
        report.rows.append(result)
        if evaluator.rank == 0:
            report.write()
            logger.info(
                "s = %.2f %-40s velocity %.4f loss %+.2f %% density %.3f (%.1f s)",
                entry.sparsity,
                entry.name,
                result["velocity"]["mean"],
                100 * result["loss"]["mean"],
                result["density_with_pseudo_keys"],
                result["seconds"],
            )
    return True
