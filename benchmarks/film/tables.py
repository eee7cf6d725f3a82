"""Write the tables of docs/film.md from the files under benchmarks/results/film.

python -m benchmarks.film.tables [--check]
"""

from __future__ import annotations

import statistics
from typing import Annotated

import typer

from benchmarks.film.pooled import Trainings
from benchmarks.film.predicted import (
    PREDICTED,
    PREDICTED_LATER,
    PREDICTED_LONGER,
    PUBLISHED,
)
from benchmarks.film.sections import (
    BASE,
    SPARSITIES,
    box,
    changes,
    every_rule,
    pm,
    predicted_and_found,
)
from benchmarks.record import RESULTS
from benchmarks.tables import Row, markdown, sources
from benchmarks.update_docs import replace_results

FILES = RESULTS / "film"
LONGER_FILES = FILES / "longer"  # clips of 33 frames
DOCUMENT = RESULTS.parents[1] / "docs" / "film.md"

# Each exchange: its name, both sides, and the rules with one and with the other.
CUBES = "boxes, sub-window scores, means"
LONG = "long boxes, sub, means"
CHANGES = (
    ("shape", "cubes instead of raster blocks, mean scores", "boxes, means", "raster, means"),
    ("shape", "cubes instead of raster blocks", CUBES, "raster, sub-block scores, means"),
    ("shape", "long instead of raster blocks", LONG, "raster, sub-block scores, means"),
    ("shape", "long instead of cubes", LONG, CUBES),
    ("shape", "flat instead of cubes", "flat boxes, sub, means", CUBES),
    ("shape", "long-even instead of long", "long-even boxes, sub, means", LONG),
    ("shape", "a shape for each head instead of long", "shape of a head, sub, means", LONG),
    ("rest", "means instead of dropping, raster blocks", "raster, means", "RainFusion2"),
    ("rest", "means instead of dropping, cubes", "boxes, means", "boxes, dropped"),
    ("rest", "first order and means, raster blocks", "raster, first order", "raster, means"),
    ("rest", "first order and means, cubes", "boxes, sub-window scores, first order", CUBES),
    ("score", "sub-windows instead of means, cubes", CUBES, "boxes, means"),
    ("score", "covariance instead of means, cubes", "boxes, covariance, means", "boxes, means"),
    (
        "score",
        "true mass (no rule) instead of sub-windows, cubes",
        "boxes, true mass, means",
        CUBES,
    ),
    ("score", "none, nearest in place, cubes", "boxes, nearest in place, means", CUBES),
    ("score", "none, nearest in place, long", "long boxes, nearest in place, means", LONG),
    ("budget", "one threshold for a layer, cubes", "boxes, sub, threshold, means", CUBES),
    ("kinds", "means in textural heads", "RainFusion, textural with means", "RainFusion"),
    ("kinds", "the larger recall instead of textural", "RainFusion, larger recall", "RainFusion"),
)
CHANGES_LATER = (
    ("score", "means instead of sub-windows, long", "long boxes, means", LONG),
    ("rest", "means instead of dropping, long", "long boxes, means", "long boxes, dropped"),
    ("shape", "long instead of cubes, mean scores", "long boxes, means", "boxes, means"),
    ("shape", "cube keys, long queries", "long queries, cube keys, means", "long boxes, means"),
    ("shape", "cube queries, long keys", "cube queries, long keys, means", "long boxes, means"),
)
WORK = (0.3, 0.35, 0.4, 0.45)  # shares of dense tiles
AT_WORK = (
    "RainFusion2",
    "raster, means",
    "boxes, means",
    CUBES,
    "six boxes, sub, means",
    LONG,
    "long-even boxes, sub, means",
    "long boxes, nearest in place, means",
)
MAIN = (
    "raster, means",
    "boxes, dropped",
    "boxes, means",
    CUBES,
    LONG,
    "long-even boxes, sub, means",
    "long boxes, nearest in place, means",
    "flat boxes, sub, means",
    "shape of a head, sub, means",
    "all temporal, tokens",
    "RainFusion",
    "RainFusion, larger recall",
)


def render(trainings: Trainings, longer: Trainings | None = None) -> str:
    """All tables, each under a heading; ``longer`` holds the files of longer clips."""
    sections = {
        "The files": files(trainings),
        "Against RainFusion2": against_base(trainings),
        "One thing changed at a time": changes(trainings, CHANGES),
        "At equal work": at_work(trainings),
        "Predicted and found": predictions(trainings),
        "Share of keys for 95 % of the mass": coverage(trainings),
        **{
            f"Every rule, s = {s:g}": every_rule(trainings, trainings.rules(s), s)
            for s in SPARSITIES
        },
        "Rules of the later trainings": later_rules(trainings),
        "Longer clips": longer_clips(longer) if longer else "",
    }
    return "\n".join(f"### {title}\n\n{text}" for title, text in sections.items() if text)


def files(trainings: Trainings) -> str:
    """The place, date and command of the measurements, and the length of each training."""
    rows = [
        {
            "file": name,
            "processes": record["processes"],
            "steps": ", ".join(_last_steps(record["training"])),
            "dense loss, held out": f"{statistics.fmean(record['dense_loss']):.3f}",
        }
        for name, record in trainings.records.items()
    ]
    shots, first = trainings.shots, trainings.first
    return (
        f"{sources(trainings.records, '../benchmarks/results/film')}\n{markdown(rows)}\n"
        f"{len(shots)} cases: {len(set(shots))} held-out shots of {first['shots']} in "
        f"{first['frames']} frames, crossed with t = 0.9, 0.6 and 0.3; the same\nshots in every "
        "training.\n"
    )


def against_base(trainings: Trainings) -> str:
    """Ratios to RainFusion2, each training by itself and all together."""
    table = []
    for rule in MAIN:
        cells: Row = {"rule": rule}
        for s in SPARSITIES[:2]:
            ratio = trainings.ratio(rule, BASE, s, "velocity")
            for name, value in zip(trainings.records, ratio.trainings, strict=True):
                cells[f"s = {s:g}: {name}"] = f"{value:.3f}"
            cells[f"s = {s:g}: all"] = pm(ratio)
            cells[f"s = {s:g}: loss, all"] = pm(trainings.ratio(rule, BASE, s, "loss"))
        table.append(cells)
    return (
        "Ratio of the mean over cases to RainFusion2's mean in the same training: relative error "
        "of the\nvelocity, and rise of the loss. `all` is the mean of the trainings; its standard "
        "error is that of a\nbootstrap over shots, drawn together for both rules and all "
        f"trainings.\n\n{markdown(table)}"
    )


def at_work(trainings: Trainings) -> str:
    """Errors at the same number of tiles."""
    table = []
    for rule in AT_WORK:
        found = [trainings.at_work(rule, work, "velocity") for work in WORK]
        cells = ["" if value is None else f"{value:.3f}" for value in found]
        table.append({"rule": rule, **dict(zip(map(str, WORK), cells, strict=True))})
    return (
        "Error of the velocity at a share of dense tiles, on straight lines between a rule's three "
        f"sparsities\n(both axes logarithmic).\n\n{markdown(table)}"
    )


def predictions(trainings: Trainings) -> str:
    """Predictions beside the means that were found."""
    later = {
        rule: values
        for rule, values in PREDICTED_LATER.items()
        if rule in trainings.rules(0.8) + trainings.partial_rules(0.8)
    }
    return predicted_and_found(trainings, {**PREDICTED, **later})


def coverage(trainings: Trainings) -> str:
    """The share of keys that the heads need, beside published profiles."""
    shares = {
        name.replace("_", " "): record["keys_for_95_percent"]
        for name, record in trainings.records.items()
    }
    quantiles, limits = (
        list(next(iter(shares.values()))[k]) for k in ("quantiles", "share_within")
    )
    lines = {
        name: (share["mean"], share["quantiles"].values(), share["share_within"].values())
        for name, share in shares.items()
    }
    table = []
    for name, (mean, points, within) in {**lines, **PUBLISHED}.items():
        cells: Row = {"": name, "mean": f"{mean:.3f}"}
        for p, value in zip(quantiles, points, strict=True):
            cells[f"p{100 * float(p):.0f}"] = f"{value:.3f}"
        for limit, value in zip(limits, within, strict=True):
            cells[f"heads with at most {limit}"] = f"{value:.2f}"
        table.append(cells)
    return markdown(table)


def later_rules(trainings: Trainings) -> str:
    """All measures of the rules that the first trainings had not yet; empty without any."""
    parts = []
    for s in SPARSITIES:
        rules = trainings.partial_rules(s)
        if not rules:
            continue
        having = trainings.having(*rules)
        names = ", ".join(name.replace("_", " ") for name in having.records)
        compared = [*rules, BASE, "boxes, means", LONG]
        parts.append(f"s = {s:g}, {names}:\n\n{every_rule(having, compared, s)}")
    if parts:
        rules = [name for *_, rule, other in CHANGES_LATER for name in (rule, other)]
        parts.append(changes(trainings.having(*rules), CHANGES_LATER))
    return "\n".join(parts)


def longer_clips(trainings: Trainings) -> str:
    """Source, measures at every sparsity, and what was predicted."""
    record = trainings.first
    grid, held, train = record["grid"], *(record["sequences"][k] for k in ("held_out", "train"))
    shapes = record["shapes"].items()
    parts = [
        sources(trainings.records, "../benchmarks/results/film/longer"),
        f"Clips of {box(grid)} tokens: {train['sequences']} sequences in "
        f"{train['shots']} shots to tune on;\n{len(trainings.shots)} cases in "
        f"{len(set(trainings.shots))} of {held['shots']} held-out shots that are long enough. A "
        "mean is that of the shots' means.\n",
        markdown([{"windows": name, "queries": box(q), "keys": box(k)} for name, (q, k) in shapes]),
    ]
    for s in SPARSITIES:
        parts.append(f"s = {s:g}:\n\n{every_rule(trainings, trainings.rules(s), s)}")
    parts.append(predicted_and_found(trainings, PREDICTED_LONGER))
    return "\n".join(parts)


def _last_steps(training: list[Row]) -> list[str]:
    """The number of steps of each stage."""
    last = {entry["stage"]: entry["step"] for entry in training}
    return [f"{stage} {step}" for stage, step in last.items()]


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if it is out of date.")] = False,
) -> None:
    """Bring the tables of docs/film.md up to date."""
    text = DOCUMENT.read_text(encoding="utf-8")
    longer = Trainings.read(LONGER_FILES) if LONGER_FILES.exists() else None
    wanted = replace_results(text, render(Trainings.read(FILES), longer), DOCUMENT.name)
    if check and wanted != text:
        raise SystemExit(f"{DOCUMENT.name} is out of date: run python -m benchmarks.film.tables")
    if wanted != text:
        temporary = DOCUMENT.with_suffix(".md.new")
        temporary.write_text(wanted, encoding="utf-8")
        temporary.replace(DOCUMENT)


if __name__ == "__main__":
    typer.run(main)
