"""Make the tables of docs/models.md from ``models_<name>.json``, which bench_models.py writes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from benchmarks.tables import Record, Row, markdown, sources

FEW_LAYERS = (
    "hunyuanvideo",
    "opensoraplan-1.2",
    "cogvideox-5b",
    "wan2.1-14b",
    "wan2.2-i2v-a14b",
    "hunyuanvideo-1.5-i2v",
    "ltx-2",
)
COMPLETE = "opensoraplan-1.2_complete"
TWO_SIZES = "wan2.1-14b_two-sizes"
NOT_RUN = "not run"
EAGER, COMPILED = "eager, cuDNN attention", "torch.compile, cuDNN attention"
MASKED = "eager, cuDNN attention, padding masked"
COMPILED_SPARSE = "torch.compile, RainFusion"
ENGINE, OPERATOR = "engine", "torch operator"
SPARSITIES = (0.0, 0.5, 0.64, 0.8)
COMPILED_AT = 0.8


def render(folder: Path) -> str:
    """All tables; a benchmark without a file says "not run"."""
    records = {name: _record(folder, name) for name in (*FEW_LAYERS, COMPLETE, TWO_SIZES)}
    parts = [
        "Milliseconds of one forward call, and in brackets over its number of blocks. Errors are "
        "relative (Frobenius norm): of the engine at s = 0 against eager, and above against the "
        "torch operator. Where no method is named it is `rainfusion`.\n",
        markdown([_few_layers(name, records[name]) for name in FEW_LAYERS]),
        f"OpenSoraPlan-1.2 complete, in its diffusers pipeline:\n\n{_complete(records[COMPLETE])}",
        f"One engine at two sizes:\n\n{_two_sizes(records[TWO_SIZES])}",
    ]
    found = {f"models_{name}": record for name, record in records.items() if record is not None}
    if found:
        parts.append(f"How this was measured:\n\n{sources(found, '../benchmarks/results')}")
    return "\n".join(parts)


def _record(folder: Path, name: str) -> Record | None:
    path = folder / f"models_{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _few_layers(name: str, record: Record | None) -> Row:
    table: Row = {"model": name}
    if record is None:
        return table | {"size": NOT_RUN}
    rows = record["rows"]
    blocks = next((r["blocks"] for r in rows if "blocks" in r), None)
    table |= {"size": rows[0]["size"], "batch": rows[0]["batch"], "blocks": blocks}
    table["tokens"] = next((r["tokens"] for r in rows if "tokens" in r), None)
    table["method"] = next((r["method"] for r in rows if "method" in r), None)
    table["eager, cuDNN"] = _time(rows, EAGER, 0.0)
    table["torch.compile, cuDNN"] = _time(rows, COMPILED, 0.0)
    compiled = f"torch.compile, RainFusion, s = {COMPILED_AT:g}"
    table[compiled] = _time(rows, COMPILED_SPARSE, COMPILED_AT)
    for s in SPARSITIES:
        table[f"engine, s = {s:g}"] = _time(rows, ENGINE, s)
    table |= _errors(rows, (0.5, COMPILED_AT))
    if any(row.get("run") == MASKED for row in rows):
        table["eager, cuDNN, with mask"] = _time(rows, MASKED, 0.0)
    failed = [f"{row['run']}: {row['failed']}" for row in rows if "failed" in row]
    return table | ({"failed": "; ".join(failed)} if failed else {})


def _errors(rows: list[Row], sparsities: Iterable[float]) -> Row:
    return {"error, s = 0": _error(rows, 0.0, EAGER)} | {
        f"error, s = {s:g}": _error(rows, s, OPERATOR) for s in sparsities
    }


def _time(rows: Iterable[Row], run: str, sparsity: float) -> str:
    """Time of a forward and of a block, or "failed" if the run failed."""
    failed = False
    for row in rows:
        if row.get("run") != run:
            continue
        if "ms" in row and row["what"] == "time of one forward" and row["sparsity"] == sparsity:
            block = f" ({row['ms_per_block']:g})" if "ms_per_block" in row else ""
            return f"{row['ms']:g}{block}"
        failed = failed or "failed" in row
    return "failed" if failed else NOT_RUN


def _error(rows: Iterable[Row], sparsity: float, against: str) -> float | str:
    wanted = (ENGINE, sparsity, against)
    found = [
        row["relative_error"]
        for row in rows
        if (row.get("run"), row.get("sparsity"), row.get("against")) == wanted
        and "relative_error" in row
    ]
    return max(found) if found else NOT_RUN


def _complete(record: Record | None) -> str:
    """Times of a step and of a forward, and the worst error of any step."""
    if record is None:
        return f"{NOT_RUN.capitalize()}.\n"
    rows = record["rows"]
    memory = {r["run"]: r["gib"] for r in rows if r["what"] == "device memory"}
    steps = [r for r in rows if "relative_error_per_step" in r]
    table = []
    for run in (EAGER, OPERATOR, ENGINE):
        for s in (0.0, 0.5) if run != EAGER else (0.0,):
            cells: Row = {"run": run, "s": s, "ms of a forward": _time(rows, run, s)}
            cells |= {"ms of a step": None, "worst error of a step": None}
            if run == ENGINE:
                compared = [r["relative_error"] for r in steps if r["sparsity"] == s]
                cells["ms of a step"] = _step(rows, s)
                cells["worst error of a step"] = max(compared) if compared else NOT_RUN
            cells["GiB of device memory"] = memory.get(run) if s == 0.0 else None
            table.append(cells)
    return markdown(table)


def _step(rows: Iterable[Row], sparsity: float) -> float | str:
    found = [
        row["ms"]
        for row in rows
        if row["what"] == "time of one step" and row["sparsity"] == row["sparsity_of_run"]
        if row["sparsity"] == sparsity
    ]
    return found[0] if found else NOT_RUN


def _two_sizes(record: Record | None) -> str:
    if record is None:
        return f"{NOT_RUN.capitalize()}.\n"
    rows = record["rows"]
    file = next((r for r in rows if r["what"] == "engine file"), None)
    table = []
    for size in dict.fromkeys(row["size"] for row in rows if row["what"] == "attention length"):
        mine = [row for row in rows if row["size"] == size]
        tokens = next(row["tokens"] for row in mine if "tokens" in row)
        cells: Row = {"size": size, "tokens": tokens, "eager, cuDNN": _time(mine, EAGER, 0.0)}
        for s in (0.0, 0.5):
            cells[f"engine, s = {s:g}"] = _time(mine, ENGINE, s)
        table.append(cells | _errors(mine, (0.5,)))
    same = "not compared"
    if file is not None:
        same = "the same" if file["sha256"] == file["sha256_after"] else "not the same"
    return f"{markdown(table)}\nThe engine's file before and after both sizes: {same}.\n"
