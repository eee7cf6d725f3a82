"""How much noise it is worth to be dense at: limits and sparsities, at the shifts of schedulers."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from itertools import product

import torch.distributed as dist

from benchmarks.fidelity.film.bench import Bench
from benchmarks.fidelity.film.entries import TARGET
from benchmarks.fidelity.film.scoring import PixelScorer
from benchmarks.fidelity.film.videos import Videos, along_path, generation
from benchmarks.film.evaluate import TIMES, dense_attention, gather, total
from benchmarks.film.product import OperatorRule
from benchmarks.film.report import Report

SPARSITIES = (0.64, 0.8, 0.9)
LIMITS = (0.8, 0.9, 0.95, 0.98, 1.0)  # 1 leaves no step dense


def measure_schedules(bench: Bench, options: argparse.Namespace, until: float) -> None:
    """Every shift with every limit and sparsity; ``schedules_SEED.json``.

    Videos are compared with those of all steps dense, of the same noise and shift. They also drift
    from these where they are as good: the loss along noisy held-out shots is of the model alone.
    """
    sparsities = tuple(options.sparsity or SPARSITIES)
    plans = tuple(product(options.dense_above or LIMITS, sparsities))
    complete = True

    def time_is_over() -> bool:
        return bool(total([float(time.monotonic() > until)], bench.device)[0])

    with PixelScorer() as scorer:
        videos = Videos(bench, scorer, options.output, 0)
        cases = [c for c in bench.sources[0].cases(bench.scene, options.shots) if c.t == TIMES[0]]
        mine = cases[videos.rank :: videos.world]
        for shift in options.shifts:
            if not complete or time_is_over():
                complete = False
                break
            task = generation(bench, options.steps[0], range(options.seeds), shift=shift)
            videos.begin(task)
            dense = along_path(bench, mine, task, dense_attention)
            for limit, s in plans:
                if time_is_over():
                    complete = False
                    break
                labels = {"rule": TARGET, "sparsity": s, "shift": shift, "dense_above": limit}
                rule = OperatorRule(TARGET, s, bench.scene, TARGET)
                row = videos.measure(labels, rule, dense_above=limit)
                losses = along_path(bench, mine, replace(task, dense_above=limit), rule)
                rises = [loss / usual - 1 for loss, usual in zip(losses, dense, strict=True)]
                row["loss_rise"] = [rise for part in gather(rises) for rise in part]
        rows = videos.finish()
    report = Report(
        options.output,
        f"{bench.prefix}schedules_{bench.seed}",
        {
            "seed": bench.seed,
            "processes": dist.get_world_size(),
            "grid": list(bench.scene.grid),
            "complete": complete,
        },
        "videos against those of all steps dense from the same noise; share by which the loss "
        "rises along noisy held-out shots; steps above a limit of noise are dense",
        rows,
    )
    if videos.rank == 0:
        report.write()
