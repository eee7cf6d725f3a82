"""Parts that several tables of docs/film.md are made of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from benchmarks.film.pooled import Estimate, Trainings
from benchmarks.tables import Row, markdown

BASE = "RainFusion2"
SPARSITIES = (0.8, 0.9, 0.64)


def changes(trainings: Trainings, pairs: Sequence[tuple[str, str, str, str]]) -> str:
    """Ratios between rules that differ in one thing."""
    table = [
        {"what": what, "change": change}
        | {f"s = {s:g}": pm(trainings.ratio(rule, other, s, "velocity")) for s in SPARSITIES}
        for what, change, rule, other in pairs
    ]
    return (
        "Error of the velocity after the change divided by that before, averaged and resampled in "
        f"the same\nway: below 1 the change is for the better.\n\n{markdown(table)}"
    )


def every_rule(trainings: Trainings, rules: list[str], sparsity: float) -> str:
    """All measures of rules at one sparsity."""
    table = []
    for rule in rules:
        velocity, loss, flicker = (
            trainings.mean(rule, sparsity, measure) for measure in ("velocity", "loss", "flicker")
        )
        rows = trainings.rows(rule, sparsity)
        table.append(
            {
                "rule": rule,
                "error": pm(velocity),
                "spread": f"{velocity.spread:.3f}",
                "of RainFusion2's": pm(trainings.ratio(rule, BASE, sparsity, "velocity")),
                "loss, %": pm(loss, 100, 1),
                "flicker": pm(flicker),
                "density": f"{statistics.fmean(r['density_with_pseudo_keys'] for r in rows):.3f}",
                "tiles": f"{trainings.tiles(rule, sparsity):.3f}",
            }
        )
    return markdown(table)


def predicted_and_found(trainings: Trainings, values: Mapping[str, tuple[float, float]]) -> str:
    """Predictions at the first two sparsities beside the means that were found."""
    table = []
    for rule, predicted in values.items():
        cells: Row = {"rule": rule}
        having = trainings.having(rule)
        for s, value in zip(SPARSITIES[:2], predicted, strict=True):
            at = s if rule in having.rules(s) else 0.0
            found = having.mean(rule, at, "velocity")
            cells[f"predicted, s = {s:g}"] = f"{value:.3f}"
            cells[f"found, s = {s:g}"] = f"{found.value:.3f}"
        table.append(cells)
    return f"Relative error of the velocity.\n\n{markdown(table)}"


def box(shape: Sequence[int]) -> str:
    """Extents as text."""
    return " x ".join(map(str, shape))


def pm(estimate: Estimate, factor: float = 1.0, digits: int = 3) -> str:
    """A value with its standard error as text."""
    value, stderr = factor * estimate.value, factor * estimate.stderr
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"
