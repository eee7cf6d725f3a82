"""Tables of the instrument at equal densities: film, videos, made-up heads, demo windows."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.film.pooled import Estimate, Trainings
from benchmarks.tables import Row, markdown, sources

Record = dict[str, Any]
Makers = dict[str, tuple[str, Callable[[Mapping[str, Record]], str]]]
BASE = "rainfusion2"
TARGET = "piecewise"
FOLDER = "../benchmarks/results/fidelity"


def read_records(folder: Path) -> dict[str, Record]:
    """Every file of a folder, by name without its ending; none if there is no folder."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def sections(
    records: Mapping[str, Record], block: Mapping[float, float] | None = None
) -> dict[str, str]:
    """Text of every section that there are files for, by the name of its markers.

    ``block`` is of :func:`caching`.
    """
    texts = {}
    makers: Makers = {**SECTIONS, "film-caching": ("caching", partial(caching, block=block))}
    for name, (prefix, make) in makers.items():
        mine = {k: r for k, r in records.items() if k == prefix or k.startswith(f"{prefix}_")}
        if mine:
            texts[name] = f"{sources(mine, FOLDER)}\n{make(mine)}"
    return texts


def block_times(record: Record | None) -> dict[float, float]:
    """Milliseconds of a compiled forward by sparsity, of a file of ``scripts/bench_models.py``."""
    rows = record["rows"] if record else []
    return {
        row["sparsity"]: row["ms"]
        for row in rows
        if row["what"] == "time of one forward" and row["run"].startswith("torch.compile")
    }


def fixed(records: Mapping[str, Record]) -> str:
    """Error, loss and flicker at fixed noise: source by source, sparsity by sparsity."""
    for name, record in records.items():
        if not record["complete"]:
            raise SystemExit(f"{name}.json lacks rules: measure again with a larger --limit")
    parts = []
    first = next(iter(records.values()))
    for source in first["cases"]:
        trainings = Trainings({n: _of_source(r, source) for n, r in records.items()})
        origins = {row["rule"]: row["origin"] for row in first["rows"]}
        for s in dict.fromkeys(row["sparsity"] for row in first["rows"]):
            table = [_fixed_row(trainings, rule, origins[rule], s) for rule in trainings.rules(s)]
            parts.append(
                f"{source}, {len(set(trainings.shots))} shots, {len(trainings.shots)} cases, at "
                f"the density of `piecewise` at s = {s:g}:\n\n{markdown(table)}"
            )
    return "\n".join(parts)


def explored(records: Mapping[str, Record]) -> str:
    """Rules beside `piecewise`, whose own error at their work is interpolated."""
    parts = []
    for name, record in records.items():
        for source, cases in record["cases"].items():
            trainings = Trainings({name: _of_source(record, source)})
            for s in dict.fromkeys(row["sparsity"] for row in record["rows"]):
                table = [_explored_row(trainings, rule, s) for rule in trainings.rules(s)]
                shots = len({case[0] for case in cases})
                parts.append(
                    f"{name}, {source}, {shots} {'shot' if shots == 1 else 'shots'}, {len(cases)} "
                    f"cases, s = {s:g}:\n\n{markdown(table)}"
                )
    return "\n".join(parts)


def _explored_row(trainings: Trainings, rule: str, s: float) -> Row:
    tiles = trainings.tiles(rule, s)
    at_work = trainings.at_work(TARGET, tiles, "velocity")
    return {
        "rule": rule,
        "density": _density(trainings, rule, s),
        "tiles": f"{tiles:.3f}",
        "error": _pm(trainings.mean(rule, s, "velocity")),
        f"of {TARGET}'s": _pm(trainings.ratio(rule, TARGET, s, "velocity")),
        f"{TARGET} with as many tiles": "" if at_work is None else f"{at_work:.3f}",
        "loss, %": _pm(trainings.mean(rule, s, "loss"), factor=100, digits=2),
        "flicker": _pm(trainings.mean(rule, s, "flicker")),
    }


def schedules(records: Mapping[str, Record]) -> str:
    """How much noise it is worth to be dense at."""
    parts = []
    for name, record in records.items():
        table = [
            {
                "shift": f"{row['shift']:g}",
                "dense above": f"{row['dense_above']:g}",
                "dense steps": f"{row['dense_steps']} of {row['steps']}",
                "s": f"{row['sparsity']:g}",
                "density of all steps": f"{row['density_of_all_steps']:.3f}",
                "loss, %": _pm(_mean(row["loss_rise"]), factor=100, digits=2),
                "error of the latents": _pm(_mean(row["latents_error"])),
                "PSNR": _pm(_mean(row["psnr"]), digits=1),
            }
            for row in record["rows"]
        ]
        first = record["rows"][0]
        ended = "" if record["complete"] else " Time ended before the other rows."
        parts.append(
            f"{name}: {len(first['psnr'])} videos, {len(first['loss_rise'])} held-out shots."
            f"{ended}\n\n{markdown(table)}"
        )
    return "\n".join(parts)


def videos(records: Mapping[str, Record]) -> str:
    """Restored and drawn videos against dense ones, task by task."""
    parts = []
    for name, record in records.items():
        rows = record["rows"]
        for task, steps in dict.fromkeys((row["task"], row["steps"]) for row in rows):
            mine = [row for row in rows if (row["task"], row["steps"]) == (task, steps)]
            number, dense = len(mine[0]["psnr"]), mine[0]["dense_steps"]
            parts.append(
                f"{name.replace('_', ' ')}: {task}, {steps} steps, {dense} of them dense, "
                f"{number} videos:\n\n{markdown([_video_row(row, mine) for row in mine])}"
            )
    return "\n".join(parts)


def caching(records: Mapping[str, Record], block: Mapping[float, float] | None = None) -> str:
    """What step caches at every threshold keep of the video, and the time they leave.

    Parameters
    ----------
    block
        Milliseconds of a forward of another model by sparsity, 0 too: the time in its terms.
    """
    parts = []
    for name, record in records.items():
        rows = record["rows"]
        for task, steps in dict.fromkeys((row["task"], row["steps"]) for row in rows):
            mine = [row for row in rows if (row["task"], row["steps"]) == (task, steps)]
            ms = ", ".join(f"s = {s}: {value:.1f}" for s, value in record["step_ms"].items())
            ended = "" if record["complete"] else " Time ended before the other rows."
            parts.append(
                f"{name.replace('_', ' ')}: {task}, {steps} steps, {len(mine[0]['psnr'])} videos; "
                f"milliseconds of a step ({record['step_ms_from']}): {ms}.{ended}\n\n"
                f"{markdown([_caching_row(row, mine, block or {}) for row in mine])}"
            )
    return "\n".join(parts)


def _caching_row(row: Row, rows: Sequence[Row], block: Mapping[float, float]) -> Row:
    base = [r for r in rows if r["sparsity"] == 0.0 and r["cache"] == "none"]
    rule = row["cache"] if row["reuse"] in ("", "output") else f"{row['cache']}, {row['reuse']}"
    cells: Row = {
        "s": f"{row['sparsity']:g}",
        "cache": rule,
        "threshold": f"{row['threshold']:g}" if rule != "none" else "",
        "steps that run": f"{statistics.fmean(map(len, row['ran'])):.1f}",
        "time here": f"{row['time']:.2f}",
    }
    if block:
        cells["time in Wan 14B blocks"] = f"{_time_of(row, block):.2f}"
    rise = 100 * (row["loss"] / base[0]["loss"] - 1) if base and "loss" in row else None
    cells["loss, %"] = "" if rise is None else f"{rise:+.2f}"
    if row in base:  # the videos that all are compared with
        return cells | {"error of the latents": "", "PSNR": "", "flicker": ""}
    return cells | {
        "error of the latents": _pm(_mean(row["latents_error"])),
        "PSNR": _pm(_mean(row["psnr"]), digits=1),
        "flicker": _pm(_mean(row["flicker"])),
    }


def _time_of(row: Row, block: Mapping[float, float]) -> float:
    """Time of the steps that ran, in forwards of another model, against all of them dense."""
    dense = row["dense_steps"]
    taken = [
        block[0.0] if step < dense else block[row["sparsity"]] for ran in row["ran"] for step in ran
    ]
    return sum(taken) / (block[0.0] * row["steps"] * len(row["ran"]))


def vmaf(records: Mapping[str, Record]) -> str:
    """VMAF of a few videos."""
    table = [
        {
            "task": row["task"],
            "rule": row["rule"],
            "s": f"{row['sparsity']:g}",
            "videos": len(row["vmaf"]),
            "VMAF": _pm(_mean(row["vmaf"]), digits=1),
        }
        for record in records.values()
        for row in record["rows"]
    ]
    return markdown(table)


def synthetic(records: Mapping[str, Record]) -> str:
    """Error of made-up heads at every sparsity, and by what heads need."""
    parts = []
    for record in records.values():
        rows = record["rows"]
        sparsities = list(dict.fromkeys(row["sparsity"] for row in rows))
        at = {(row["rule"], row["sparsity"]): row for row in rows}
        table = []
        for rule in dict.fromkeys(row["rule"] for row in rows):
            cells: Row = {"rule": rule}
            for s in sparsities:
                row = at[rule, s]
                cells[f"s = {s:g}"] = f"{row['error']:.3f} ± {row['stderr']:.3f}"
            table.append(cells)
        main = 0.8 if 0.8 in sparsities else sparsities[0]
        grid = " x ".join(map(str, record["setting"]["grid"]))
        parts.append(
            f"{record['profile'].split('.csv')[0]}, {grid} tokens, {len(record['shares'])} heads "
            f"of {len(record['groups'])} layers, mean error of a head:\n\n{markdown(table)}"
        )
        parts.append(
            f"The same at s = {main:g}, by the share of keys that a head needs:\n\n"
            + markdown([_class_row(at[rule, main]) for rule in dict.fromkeys(r for r, _ in at)])
        )
    return "\n".join(parts)


def demo(records: Mapping[str, Record]) -> str:
    """Windows on the demo model."""
    parts = []
    for name, record in records.items():
        rows = record["rows"]
        table = []
        for row in rows:
            peer = [r for r in rows if (r["rule"], r["blocks"]) == (BASE, row["blocks"])]
            cells: Row = {
                "rule": row["rule"],
                "blocks": row["blocks"],
                "density": f"{row['density']:.3f}",
                "PSNR": _pm(_mean(row["psnr_per_seed"]), digits=1),
                f"dB over {BASE}": "",
                "SSIM": _pm(_mean(row["ssim_per_seed"])),
            }
            if peer and peer[0] is not row:
                cells[f"dB over {BASE}"] = _gain(row["psnr_per_seed"], peer[0]["psnr_per_seed"])
            table.append(cells)
        parts.append(f"{name}, {rows[0]['seeds']} seeds:\n\n{markdown(table)}")
    return "\n".join(parts)


def bits(records: Mapping[str, Record]) -> str:
    """What 8 bits change: velocities source by source, and attention on layers' own q, k, v."""
    parts = []
    for name, record in records.items():
        for source, shares in record["shares"].items():
            table = [
                {
                    "rule": row["rule"],
                    "s": f"{row['sparsity']:g}",
                    "error": _of_cases(row["velocity"], digits=4),
                    "of piecewise's": f"{shares[row['rule']]:.3f}",
                    "loss, %": _of_cases(row["loss"], factor=100, digits=2),
                    "flicker": _of_cases(row["flicker"], digits=4),
                }
                for row in record["rows"]
                if row["source"] == source and "velocity" in row
            ]
            cases = len(next(r for r in record["rows"] if "velocity" in r)["velocity"]["cases"])
            parts.append(f"{name}, {source}, {cases} cases:\n\n{markdown(table)}")
        keys = {"layer": "layer", "precision": "attention"}
        keys |= {"relative_error_mean": "error", "relative_error_worst": "of the worst head"}
        layers = [{title: row[key] for key, title in keys.items()} for row in record["attention"]]
        parts.append(f"{name}, dense attention of layers:\n\n{markdown(layers)}")
    return "\n".join(parts)


SECTIONS: Makers = {
    "film-fixed": ("fixed", fixed),
    "film-explored": ("explored", explored),
    "film-schedules": ("schedules", schedules),
    "film-videos": ("videos", videos),
    "film-caching": ("caching", caching),
    "film-bits": ("bits", bits),
    "film-vmaf": ("vmaf", vmaf),
    "film-longer-fixed": ("longer_fixed", fixed),
    "film-longer-videos": ("longer_videos", videos),
    "synthetic": ("synthetic", synthetic),
    "demo-windows": ("demo", demo),
}
"""Markers in the document: the prefix of its files, and what makes the text."""


def _of_source(record: Record, source: str) -> Record:
    rows = [row for row in record["rows"] if row["source"] == source]
    return {"cases": record["cases"][source], "rows": rows}


def _fixed_row(trainings: Trainings, rule: str, origin: str, s: float) -> Row:
    return {
        "rule": rule,
        "origin": origin,
        "density": _density(trainings, rule, s),
        "tiles": f"{trainings.tiles(rule, s):.3f}",
        "error": _pm(trainings.mean(rule, s, "velocity")),
        f"of {BASE}'s": _pm(trainings.ratio(rule, BASE, s, "velocity")),
        "loss, %": _pm(trainings.mean(rule, s, "loss"), factor=100, digits=2),
        f"loss of {BASE}'s": _pm(trainings.ratio(rule, BASE, s, "loss")),
        "flicker": _pm(trainings.mean(rule, s, "flicker")),
    }


def _density(trainings: Trainings, rule: str, s: float) -> str:
    rows = trainings.rows(rule, s)
    return f"{statistics.fmean(row['density_with_pseudo_keys'] for row in rows):.3f}"


def _video_row(row: Row, rows: Sequence[Row]) -> Row:
    peers = [r for r in rows if (r["rule"], r["sparsity"]) == (BASE, row["sparsity"])]
    cells: Row = {
        "rule": row["rule"],
        "s": f"{row['sparsity']:g}" if row["sparsity"] else "",
        "density": f"{row['density']:.3f}" if "density" in row else "1.000",
        "tiles": f"{row['tiles']:.3f}" if "tiles" in row else "1.000",
        "PSNR": _pm(_mean(row["psnr"]), digits=1),
        f"dB over {BASE}": "",
        "SSIM": _pm(_mean(row["ssim"])),
        "flicker": _pm(_mean(row["flicker"])),
    }
    if peers and peers[0] is not row:
        cells[f"dB over {BASE}"] = _gain(row["psnr"], peers[0]["psnr"])
    return cells


def _class_row(row: Row) -> Row:
    cells: Row = {"rule": row["rule"], "density": f"{row['density']:.3f}"}
    low = "0"
    for high, (mean, number) in row["by_share"].items():
        title = f"{low} to {high} ({number})"
        cells[title] = "" if mean is None else f"{mean:.3f}"
        low = high
    cells["tiles"] = f"{row['tiles']:.3f}"
    return cells


def _gain(values: Sequence[float], others: Sequence[float]) -> str:
    """Mean and standard error of the differences of the same seeds."""
    gain = _mean([a - b for a, b in zip(values, others, strict=True)])
    return f"{gain.value:+.1f} ± {gain.stderr:.1f}"


def _of_cases(measured: Mapping[str, Any], factor: float = 1.0, digits: int = 3) -> str:
    stderr = measured["stderr"]
    estimate = Estimate(measured["mean"], math.nan if stderr is None else stderr, ())
    return _pm(estimate, factor, digits)


def _mean(values: Sequence[float]) -> Estimate:
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), spread, ())


def _pm(estimate: Estimate, factor: float = 1.0, digits: int = 3) -> str:
    value = f"{factor * estimate.value:.{digits}f}"
    if math.isnan(estimate.stderr):
        return value  # one value has no error
    return f"{value} ± {factor * estimate.stderr:.{digits}f}"
