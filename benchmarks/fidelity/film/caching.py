"""Steps that are left out against pairs that are: caches and sparsities, and what both take."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch.distributed as dist

from benchmarks.fidelity.film.bench import Bench
from benchmarks.fidelity.film.costs import Cached, Costs, attention_of, measured_costs
from benchmarks.fidelity.film.entries import TARGET
from benchmarks.fidelity.film.scoring import PixelScorer
from benchmarks.fidelity.film.videos import (
    DENSE_ABOVE,
    Step,
    Task,
    Videos,
    along_path,
    every_step,
    integrate,
    tasks,
)
from benchmarks.film.evaluate import TIMES, Case, dense_attention, gather, total
from benchmarks.film.report import Report
from rainfusion_trt.step_cache.calibrate import MagnitudeRecorder
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import RULES, CacheSettings

logger = logging.getLogger(__name__)
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
SPARSITIES = (0.0, 0.64, 0.8, 0.9)
CALIBRATED = 1000  # the first number of seeds that no video is drawn from


def calibrated(bench: Bench, task: Task, number: int, reuse: str) -> MagnitudeRatios:
    """Ratios for the rule "mag": of seeds that no video is drawn from; or of the first clips."""
    recorder = MagnitudeRecorder(reuse)
    times = tuple(task.times()[:-1].tolist())
    recorder.scheduled(lambda: times)
    every = CacheSettings("easy", first=1.0)
    items = range(CALIBRATED, CALIBRATED + number) if task.start == 1.0 else task.items[:number]
    for item in items:
        integrate(bench, task, item, dense_attention, Cached(every, recorder))
    return MagnitudeRatios("film", "Euler", times, None, recorder.ratios(), number, reuse)


def path_loss(
    bench: Bench, cases: Sequence[Case], task: Task, s: float, settings: CacheSettings | None
) -> list[float]:
    """As :func:`along_path`, with steps that a cache leaves out."""

    def step() -> Step:
        return every_step if settings is None else Cached(settings)

    return along_path(bench, cases, task, attention_of(bench, s), step)


def settings_of(bench: Bench, task: Task, options: argparse.Namespace) -> Iterator[CacheSettings]:
    """Every rule at every threshold, with everything that a skipped step may be answered with."""
    number = max(1, min(2, options.seeds))
    ratios = {reuse: calibrated(bench, task, number, reuse) for reuse in options.reuse}
    for threshold in options.thresholds or THRESHOLDS:
        for reuse in options.reuse:
            made = partial(CacheSettings, max_skips=options.max_skips, reuse=reuse)
            for rule in RULES:
                yield made(rule, threshold, ratios=ratios[reuse] if rule == "mag" else None)


def measure_caching(bench: Bench, options: argparse.Namespace, until: float) -> None:
    """Every sparsity with every cache, and without; ``caching_SEED.json``.

    Videos are compared with those of all steps dense. Time is that of the steps that ran, against
    that of all steps dense: measured here, or of steps of another model by `--step-ms`.
    """
    sparsities = tuple(options.sparsity or SPARSITIES)
    complete, costs = True, None
    with PixelScorer() as scorer:
        videos = Videos(bench, scorer, options.output, 0)
        cases = [c for c in bench.sources[0].cases(bench.scene, options.shots) if c.t == TIMES[0]]
        mine = cases[videos.rank :: videos.world]
        chosen = tasks(bench, options.seeds, options.steps)
        for task in (t for t in chosen if not options.only or t.name in options.only):
            if total([float(time.monotonic() > until)], bench.device)[0]:
                complete = False
                break
            videos.begin(task)
            costs = costs or _costs(bench, task, sparsities, options)
            plans: list[tuple[float, CacheSettings | None]] = [(s, None) for s in sparsities]
            plans += [(s, c) for c in settings_of(bench, task, options) for s in sparsities]
            for s, settings in plans:
                if total([float(time.monotonic() > until)], bench.device)[0]:
                    complete = False
                    break
                _measure(videos, task, s, settings, costs, mine)
        rows = videos.finish()
    facts = {
        "seed": bench.seed,
        "processes": dist.get_world_size(),
        "grid": list(bench.scene.grid),
        "dense_above": DENSE_ABOVE,
        "max_skips": options.max_skips,
        "complete": complete,
    }
    if costs is not None:
        facts["step_ms"] = {f"{s:g}": ms for s, ms in costs.milliseconds.items()}
        facts["skipped_step_ms"] = costs.skipped
        facts["step_ms_from"] = "command line" if options.step_ms else "this model here"
    report = Report(
        options.output,
        f"{bench.prefix}caching_{bench.seed}",
        facts,
        "videos against those of all steps dense from the same noise; time and density of all "
        "steps, those that a cache left out among them; loss along noisy held-out shots",
        rows,
    )
    if videos.rank == 0:
        report.write()


def _costs(
    bench: Bench, task: Task, sparsities: Sequence[float], options: argparse.Namespace
) -> Costs:
    found = measured_costs(bench, task, sparsities, 7 if bench.device.type == "cuda" else 2)
    if options.step_ms:
        given = dict(options.step_ms)
        missing = [s for s in dict.fromkeys((0.0, *sparsities)) if s not in given]
        if missing:
            raise ValueError(f"--step-ms has no time of a step at s = {missing[0]:g}")
        found = Costs(given, found.density, found.skipped)
    for s, ms in found.milliseconds.items():
        logger.info("a step at s = %g: %.2f ms, density %.3f", s, ms, found.density[s])
    return found


def _measure(
    videos: Videos,
    task: Task,
    s: float,
    settings: CacheSettings | None,
    costs: Costs,
    cases: Sequence[Case],
) -> None:
    bench, made = videos.bench, []

    def step() -> Any:
        made.append(Cached(settings or CacheSettings("easy", first=1.0)))
        return made[-1]

    cache = "none" if settings is None else settings.rule
    labels = {"rule": TARGET if s else "dense", "sparsity": s, "cache": cache}
    labels["threshold"] = 0.0 if settings is None else settings.threshold
    labels["reuse"] = "" if settings is None else settings.reuse
    row = videos.measure(labels, attention_of(bench, s), step=step)
    shares = [costs.of(task, s, one.ran) for one in made]
    values = [sum(column) for column in zip(*shares, strict=True)] or [0.0, 0.0]
    losses: list[float] = []
    if task.start == 1.0:  # ratios are of the steps of these tasks
        losses = path_loss(bench, cases, task, s, settings)
    counts = [float(len(shares)), sum(losses), float(len(losses))]
    time_, density, number, loss, shots = total([*values, *counts], bench.device)
    row |= {"time": time_ / number, "density": density / number}
    if shots:
        row["loss"] = loss / shots
    items = range(videos.rank, videos.rank + len(made) * videos.world, videos.world)
    parts = gather([(item, one.ran) for item, one in zip(items, made, strict=True)])
    row["ran"] = [ran for _, ran in sorted(entry for part in parts for entry in part)]
