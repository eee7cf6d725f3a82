"""Clips restored from noise and videos drawn from it, sparse against dense, pixel by pixel."""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.fidelity.film.bench import Bench, Source
from benchmarks.fidelity.film.entries import BASE, PISA, TARGET, contenders
from benchmarks.fidelity.film.lossless import Pack
from benchmarks.fidelity.film.scoring import Pending, PixelScorer
from benchmarks.film.evaluate import TIMES, Case, dense_attention, gather, total
from benchmarks.film.model import CHANNELS, Attending, Attention, velocity
from benchmarks.film.product import OperatorRule
from benchmarks.film.report import Report

logger = logging.getLogger(__name__)
DENSE_ABOVE = 0.9  # noise at which attention is still dense
RESTORED_FROM = 0.6
RULES = (
    TARGET,
    BASE,
    "rainfusion",
    "raster, means",
    PISA,
    "spatial or temporal by sampled error (SVG)",
    "cubes, means",
    "random blocks, dropped",
)
PACKED = (TARGET, BASE, "raster, means")  # written without loss, beside the dense ones
KERNELS = {  # PyTorch's default is one of them or cuDNN's, so that at least one differs
    "cuda": {
        "dense, FlashAttention": SDPBackend.FLASH_ATTENTION,
        "dense, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    },
    "cpu": {"dense, math": SDPBackend.MATH},
}


@dataclass(frozen=True)
class Task:
    """Where videos begin.

    Attributes
    ----------
    name
        ``restore, SOURCE`` or ``generate``.
    start
        Noise of the first step, in [0, 1].
    items
        Numbers of clips or seeds; an item goes to the process that its number says.
    first
        Latents of an item at the first step, and its text.
    shift
        How far schedulers of flow matching move the steps towards noise; 1 is evenly.
    dense_above
        Noise at which attention is still dense.
    """

    name: str
    start: float
    steps: int
    items: Sequence[int]
    first: Callable[[int], tuple[Tensor, Tensor]]
    shift: float = 1.0
    dense_above: float = DENSE_ABOVE

    def times(self) -> Tensor:
        """Noise before every step and after the last, float32 on the CPU."""
        even = torch.linspace(self.start, 0, self.steps + 1)
        return self.shift * even / (1 + (self.shift - 1) * even)


Step = Callable[[int, int, Tensor, Callable[[], Tensor]], Tensor]
"""Number of a step, number of steps, noisy latents, the model -> velocity."""


def every_step(step: int, steps: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
    """Every step runs."""
    return run()


@torch.no_grad()
def integrate(
    bench: Bench, task: Task, item: int, attention: Attention, step: Step = every_step
) -> Tensor:
    """Normalised latents [T, 32, h, w] by Euler steps, dense above the task's limit."""
    x, text = task.first(item)
    dtype = next(bench.model.parameters()).dtype
    times = task.times().to(bench.device)
    for number, (now, then) in enumerate(zip(times[:-1], times[1:], strict=True)):
        noisy = x.to(dtype)
        run = partial(model_velocity, bench, noisy, now, text, attention, task.dense_above)
        out = step(number, task.steps, noisy, run)
        x = x + (then - now) * out.float()
    return x[0]


def model_velocity(
    bench: Bench,
    noisy: Tensor,
    now: Tensor,
    text: Tensor,
    attention: Attention,
    dense_above: float = DENSE_ABOVE,
) -> Tensor:
    """The model's velocity [1, T, 32, h, w] at a time, dense above a limit."""
    chosen = dense_attention if now > dense_above + 1e-6 else attention
    with Attending(chosen, bench.scene.tokens):
        return velocity(bench.model, noisy, now[None], text[None].to(noisy.dtype), bench.rotary)


@torch.no_grad()
def along_path(
    bench: Bench,
    cases: Sequence[Case],
    task: Task,
    attention: Attention,
    step: Callable[[], Step] = lambda: every_step,
) -> list[float]:
    """Squared error of the velocity against the truth, mean of all steps, for held-out shots.

    Every step has the noisy shot itself, wherever the steps before have led.
    """
    losses = []
    latents, dtype = bench.sources[0].latents, next(bench.model.parameters()).dtype
    times = task.times()[:-1].to(bench.device)
    for case in cases:
        clean = latents.sequence(case.start, bench.scene.grid[0])[None]
        generator = torch.Generator().manual_seed(bench.seed * 100_000 + case.start)
        noise = torch.randn(clean.shape, generator=generator).to(bench.device)
        run_step, sums = step(), []
        for number, now in enumerate(times):
            x = ((1 - now) * clean + now * noise).to(dtype)
            text, limit = bench.text[-1], task.dense_above
            run = partial(model_velocity, bench, x, now, text, attention, limit)
            out = run_step(number, len(times), x, run)
            sums.append(F.mse_loss(out.float(), noise - clean))
        losses.append(float(torch.stack(sums).mean()))
    return losses


def dense_steps(task: Task) -> int:
    """Steps that are dense in every run."""
    return int((task.times()[:-1] > task.dense_above + 1e-6).sum())


def tasks(bench: Bench, seeds: int, steps: Sequence[int]) -> Iterator[Task]:
    """Clips of every source from :data:`RESTORED_FROM`, then videos in every number of steps."""
    number = round(RESTORED_FROM * max(steps))
    for source in bench.sources:
        starts = [case.start for case in source.cases(bench.scene, seeds) if case.t == TIMES[0]]
        name = f"restore, {source.name}"
        first = _Restored(bench, source, starts)
        yield Task(name, RESTORED_FROM, number, range(len(starts)), first)
    for number in steps:
        yield generation(bench, number, range(seeds))


def generation(bench: Bench, steps: int, seeds: Sequence[int], *, shift: float = 1.0) -> Task:
    """Videos from noise alone."""
    return Task("generate", 1.0, steps, seeds, _Drawn(bench), shift)


@dataclass(frozen=True)
class _Restored:
    """Noisy clips without text."""

    bench: Bench
    source: Source
    starts: Sequence[int]

    def __call__(self, item: int) -> tuple[Tensor, Tensor]:
        x = self.source.latents.sequence(self.starts[item], self.bench.scene.grid[0])[None]
        noise = _noise(x.shape, item, self.bench.device)
        return (1 - RESTORED_FROM) * x + RESTORED_FROM * noise, self.bench.text[-1]


@dataclass(frozen=True)
class _Drawn:
    """Noise, with the text of a shot that was trained on."""

    bench: Bench

    def __call__(self, item: int) -> tuple[Tensor, Tensor]:
        frames, rows, columns = self.bench.scene.grid
        shape = (1, frames, CHANNELS, 2 * rows, 2 * columns)
        text = self.bench.text[item % (len(self.bench.text) - 1)]
        return _noise(shape, item, self.bench.device), text


def _noise(shape: Sequence[int], item: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(10_000 + item)
    return torch.randn(tuple(shape), generator=generator).to(device)


class Videos:
    """Runs the tasks on this process's items and scores them against the dense runs."""

    def __init__(self, bench: Bench, scorer: PixelScorer, output: Path, keep: int) -> None:
        self.bench, self.scorer, self.keep = bench, scorer, keep
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.pack = Pack(output, f"{bench.prefix}lossless_{bench.seed}_{self.rank}")
        self.dense: dict[int, tuple[Tensor, np.ndarray]] = {}
        self.task: Task | None = None
        self.pending: list[tuple[dict[str, Any], list[tuple[int, float, Pending]]]] = []

    def begin(self, task: Task) -> None:
        """The dense videos of a task."""
        self.task = task
        self.dense = {}
        for item in self._mine():
            latents = integrate(self.bench, task, item, dense_attention)
            self.dense[item] = latents, self.decode(latents)
            self._keep(item, self.dense[item][1], "dense", None)

    def measure(
        self,
        labels: dict[str, Any],
        attention: Attention,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        step: Callable[[], Step] = lambda: every_step,
        *,
        dense_above: float | None = None,
    ) -> dict[str, Any]:
        """The same videos with another attention; scores come with :meth:`finish`.

        Each video has its steps by a new `step`, and the task's limit to dense steps unless another
        is given. Returns the row, which the caller may add to.
        """
        task = self._task()
        task = task if dense_above is None else replace(task, dense_above=dense_above)
        dense_number = dense_steps(task)
        row: dict[str, Any] = {"task": task.name, "steps": task.steps, "dense_steps": dense_number}
        row |= labels
        begin = time.monotonic()
        scores = []
        for item in self._mine():
            with context():
                latents = integrate(self.bench, task, item, attention, step())
            dense, picture = self.dense[item]
            found = self.decode(latents)
            error = float((latents - dense).norm() / dense.norm())
            scores.append((item, error, self.scorer.submit(picture, found)))
            self._keep(item, found, labels["rule"], labels["sparsity"])
        tally = getattr(attention, "tally", None)
        sums = total(tally.sums if tally else [0.0] * 4, self.bench.device)
        if sums[3]:
            sparse = 1 - dense_number / task.steps
            row["density"] = sums[1] / sums[3]
            row["density_of_all_steps"] = 1 + sparse * (row["density"] - 1)
            row["tiles"] = sums[2] / sums[3]
        self.pending.append((row, scores))
        logger.info("%s, %d steps: %s, %.1f s", *_named(row), time.monotonic() - begin)
        return row

    def finish(self) -> list[dict[str, Any]]:
        """Rows with every item's scores, the same on all processes."""
        if self.keep:
            self.pack.finish()
        rows = []
        for row, scores in self.pending:
            mine = [(item, error, *pending.result()) for item, error, pending in scores]
            items = sorted(entry for part in gather(mine) for entry in part)
            names = ("latents_error", "psnr", "ssim", "flicker")
            columns = zip(*(entry[1:] for entry in items), strict=True)
            rows.append(row | {n: list(column) for n, column in zip(names, columns, strict=True)})
        return rows

    @torch.no_grad()
    def decode(self, latents: Tensor) -> np.ndarray:
        """uint8 RGB frames [F, H, W, 3]."""
        values = self.bench.sources[0].latents.restore(latents)
        parts = [self.bench.autoencoder.decode(part) for part in values.split(4)]
        return (torch.cat(parts).permute(0, 2, 3, 1) * 255).round().byte().cpu().numpy()

    def _mine(self) -> list[int]:
        return [item for item in self._task().items if item % self.world == self.rank]

    def _keep(self, item: int, frames: np.ndarray, rule: str, sparsity: float | None) -> None:
        task = self._task()
        if task.start < 1 and item < self.keep and rule in (*PACKED, "dense"):
            self.pack.add(frames, task=task.name, item=item, rule=rule, sparsity=sparsity)

    def _task(self) -> Task:
        if self.task is None:
            raise RuntimeError("no task was begun")
        return self.task


def measure_videos(bench: Bench, options: argparse.Namespace, until: float) -> None:
    """All tasks; ``videos_SEED.json``, and a few pairs without loss for VMAF."""
    fixed = json.loads(options.matched.read_text(encoding="utf-8"))
    if fixed["seed"] != bench.seed:
        raise ValueError(f"{options.matched} is of seed {fixed['seed']}, not {bench.seed}")
    sparsities = options.sparsity or [0.8]
    own = {(r["rule"], r["sparsity"]): r["own_sparsity"] for r in fixed["rows"]}
    by_name = {c.name: c for c in contenders(bench.scene, bench.device)}
    rules = [name for name in RULES if not options.only or name in options.only]
    for s in sparsities:
        missing = [name for name in rules if (name, s) not in own]
        if missing:
            raise ValueError(f"{options.matched} lacks {missing[0]} at s = {s:g}")
    with PixelScorer() as scorer:
        videos = Videos(bench, scorer, options.output, options.keep)
        complete = True
        for task in tasks(bench, options.seeds, options.steps):
            if total([float(time.monotonic() > until)], bench.device)[0]:
                logger.info("out of time before %s in %d steps", task.name, task.steps)
                complete = False
                break
            videos.begin(task)
            _floors(videos, bench)
            for s in sparsities:
                for name in rules:
                    labels = {"rule": name, "sparsity": s, "own_sparsity": own[name, s]}
                    videos.measure(labels, by_name[name].make(own[name, s]))
        rows = videos.finish()
    report = Report(
        options.output,
        f"{bench.prefix}videos_{bench.seed}",
        {
            "seed": bench.seed,
            "processes": dist.get_world_size(),
            "grid": list(bench.scene.grid),
            "dense_above": DENSE_ABOVE,
            "restored_from": RESTORED_FROM,
            "complete": complete,
        },
        "videos against those of dense attention from the same noise, decoded by TAEF2; steps "
        f"whose noise is above {DENSE_ABOVE:g} are dense, by the same kernel in both",
        rows,
    )
    if videos.rank == 0:
        report.write()


def _floors(videos: Videos, bench: Bench) -> None:
    """Dense attention by other kernels, which is what arithmetic alone changes."""
    package = OperatorRule("dense", 0.0, bench.scene, TARGET)
    videos.measure({"rule": "dense, the package's", "sparsity": 0.0}, package)
    for name, backend in KERNELS[bench.device.type].items():
        labels = {"rule": name, "sparsity": 0.0}
        videos.measure(labels, dense_attention, partial(sdpa_kernel, backend))


def _named(row: dict[str, Any]) -> tuple[str, int, str]:
    return row["task"], row["steps"], f"{row['rule']} at s = {row['sparsity']:g}"
