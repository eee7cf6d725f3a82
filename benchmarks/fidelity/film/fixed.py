"""Velocity, loss and flicker at fixed noise, all rules at the density of the package's own."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.fidelity.film.bench import Bench
from benchmarks.fidelity.film.entries import BASE, SPARSITIES, TARGET, Contender, contenders
from benchmarks.film.equal import Match, matched, realised
from benchmarks.film.evaluate import Evaluator, total
from benchmarks.film.product import EnabledRule
from benchmarks.film.report import Report

logger = logging.getLogger(__name__)
ENABLED = "through enable"


def measure_fixed(
    bench: Bench,
    output: Path,
    shots: int,
    until: float,
    sparsities: Sequence[float] = SPARSITIES,
    only: Sequence[str] = (),
) -> Report:
    """All contenders on all sources, written as ``fixed_SEED.json`` after every row.

    Some of them without :data:`BASE` are ``explored_SEED.json``.

    The sparsity of a contender is found on the film, so that a rule is the same on every source.

    Parameters
    ----------
    until
        Monotonic time after which no rule is begun.
    only
        Names of contenders; without any, all.
    """
    evaluators = {source.name: bench.evaluator(source, shots) for source in bench.sources}
    film = evaluators["film"]
    report = Report(
        output,
        f"{bench.prefix}{'explored' if only and BASE not in only else 'fixed'}_{bench.seed}",
        {
            "seed": bench.seed,
            "processes": dist.get_world_size(),
            "grid": list(bench.scene.grid),
            "cases": {
                name: [[c.shot, c.start, c.t] for c in e.cases] for name, e in evaluators.items()
            },
            "dense_loss": {name: e.dense_loss() for name, e in evaluators.items()},
            "complete": False,
        },
        "weights in bfloat16; every rule at the density of piecewise, pseudo-keys counted, as near "
        "as its steps allow; errors against dense attention",
    )
    chosen = [c for c in contenders(bench.scene, bench.device) if not only or c.name in only]
    first = next(c for c in contenders(bench.scene, bench.device) if c.name == TARGET)
    longest = 0.0
    for s in sparsities:
        wanted = realised(film, first.make(s))
        for contender in chosen:
            begin = time.monotonic()
            if total([float(begin + longest > until)], bench.device)[0]:
                logger.info("out of time before %s at s = %g", contender.name, s)
                return _finished(report, film, complete=False)
            match = (
                Match(s, wanted)
                if contender.name == TARGET
                else matched(film, contender.make, wanted, s)
            )
            for source, evaluator in evaluators.items():
                report.rows.append(_row(contender, evaluator, match, s, source))
            longest = max(longest, time.monotonic() - begin)
            _write(report, film)
        if not only or ENABLED in only:
            rule = EnabledRule(f"{TARGET}, {ENABLED}", s, bench.scene, TARGET)
            row = _described(film.measure(rule), "package", s, "film")
            report.rows.append(row)
            _write(report, film)
    return _finished(report, film, complete=True)


def _row(
    contender: Contender, evaluator: Evaluator, match: Match, nominal: float, source: str
) -> dict[str, Any]:
    result = evaluator.measure(contender.make(match.sparsity))
    result["rule"] = contender.name
    return _described(result, contender.origin, nominal, source)


def _described(result: dict[str, Any], origin: str, nominal: float, source: str) -> dict[str, Any]:
    """``sparsity`` is that of the comparison, ``own_sparsity`` what the rule was given."""
    own = result.pop("sparsity")
    if origin == "package":
        result.pop("density")  # the operator reports one density, with pseudo-keys
    return {"source": source, "sparsity": nominal, "own_sparsity": own, "origin": origin} | result


def _write(report: Report, film: Evaluator) -> None:
    if film.rank == 0:
        report.write()
        row = report.rows[-1]
        logger.info(
            "s = %.2f %-45s %-6s velocity %.4f loss %+.2f %% density %.4f tiles %.4f",
            row["sparsity"],
            row["rule"],
            row["source"],
            row["velocity"]["mean"],
            100 * row["loss"]["mean"],
            row["density_with_pseudo_keys"],
            row["tiles"],
        )


def _finished(report: Report, film: Evaluator, complete: bool) -> Report:
    report.facts["complete"] = complete
    if film.rank == 0:
        report.write()
    return report
