"""Write the results in README.md, docs/results.md, models.md and diffusers.md from their files.

    python scripts/update_docs.py [--check]

Only the text between the markers of a document changes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks import diffusers_tests
from benchmarks.attention.cases import CUDNN, OURS
from benchmarks.engine import models_table, parallel_tables, whole_table
from benchmarks.tables import NOTHING, Record, Row, heading, markdown, source

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"

_ATTENTION = {
    "cudnn": "cuDNN, bfloat16",
    "16bit": "ours, bfloat16",
    "8bit": "ours, 8 bits",
    "fa3": "FlashAttention-3, bfloat16",
    "fa3-fp8": "FlashAttention-3, FP8",
    "fa3-fp8-rounded-before": "the same, rounded before",
    "sage2": "SageAttention 2",
}
_ATTENTION_SPARSITIES = (0.0, 0.5, 0.64, 0.8)  # in the tables; the file has more
_FIDELITY = "[docs/demo-study.md](demo-study.md)"
_MODELS = "[docs/models.md](models.md#on-the-gpu)"


def render(folder: Path) -> str:
    """docs/results.md: every result file, as tables or as a line that says where they are."""
    sections, elsewhere = [], []
    for name, record in _records(folder).items():
        make = next((f for prefix, f in _TABLES.items() if name.startswith(prefix)), markdown)
        if isinstance(make, str):
            line = source(name, record, "../benchmarks/results")
            elsewhere.append(line | {"rows": len(record["rows"]), "tables": make})
        else:
            sections.append(f"{heading(name, record)}\n{make(record['rows'])}")
    if elsewhere:
        sections.append(
            "### Results in other documents\n\nThose documents give versions and notes, too.\n\n"
            + markdown(elsewhere)
        )
    return "\n".join(sections) or NOTHING


def replace_results(text: str, results: str, document: str = "README.md") -> str:
    """A document with `results` between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{document} needs the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{results}{END}{after}"


def _records(folder: Path) -> dict[str, Record]:
    """All result files by name, in the order of their names."""
    return {
        path.stem: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob("*.json"))
    }


def _mixed_heads(rows: list[Row], shape: str) -> tuple[Row | None, list[Row]]:
    """cuDNN's dense attention, if it was timed, and our rows, at the sparsities of the tables."""
    mixed = [row for row in rows if row["shape"] == shape and row["heads"] == "mixed"]
    dense = next((row for row in mixed if row["rival"] == CUDNN), None)
    ours = [row for row in mixed if row["rival"] == OURS]
    return dense, [row for row in ours if row["sparsity"] in _ATTENTION_SPARSITIES]


def _attention(rows: list[Row]) -> str:
    """Mixed heads beside cuDNN's dense attention of the same run."""
    table = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        dense, ours = _mixed_heads(rows, shape)
        for row in ours:
            cells: Row = {
                "shape": shape,
                "head size": row["head_size"],
                "sparsity": row["sparsity"],
                "share of pairs computed": row["density"],
                "ms": row["ms"],
                "TFLOP/s of kept work": row["tflops"],
            }
            if dense is not None:
                cells["cuDNN dense ms"] = dense["ms"]
                cells["times faster than cuDNN dense"] = round(dense["ms"] / row["ms"], 2)
            table.append(cells)
    return (
        "A third of the heads of each kind; planning included. "
        "[docs/kernels.md](kernels.md#measured) has heads\nof one kind, random lists and other "
        f"baselines.\n\n{markdown(table)}"
    )


def _engine(rows: list[Row]) -> str:
    """Durations in one line, then a table for each kind of measurement."""
    shared = [key for key in ("model", "layers", "size", "batch") if key in rows[0]]
    durations = [f"{row['what']} {row['seconds']:g} s" for row in rows if "seconds" in row]
    facts = ", ".join([*(f"{key} {rows[0][key]}" for key in shared), *durations])
    parts = [f"{facts}\n"]
    measured = [row for row in rows if "seconds" not in row]
    for what in dict.fromkeys(row["what"] for row in measured):
        hidden = ("what", *shared)
        chosen = [
            {k: v for k, v in row.items() if k not in hidden}
            for row in measured
            if row["what"] == what
        ]
        unique = [row for i, row in enumerate(chosen) if row not in chosen[:i]]
        parts.append(f"{what[:1].upper()}{what[1:]}:\n\n{markdown(unique)}")
    return "\n".join(parts)


def _fidelity(rows: list[Row]) -> str:
    """Methods beside baselines at one sparsity; docs/demo-study.md has the rest."""
    columns = ("method", "alpha", "density", "psnr", "ssim", "seeds")
    table = [
        {column: row[column] for column in columns}
        for row in rows
        if row["group"] in ("methods", "baselines") and row["sparsity"] == 0.5
    ]
    return (
        "Videos of the demo model at s = 0.5 against dense attention, 10 % of the steps dense. "
        f"{_FIDELITY}\nsays how it was measured and what it means.\n\n{markdown(table)}"
    )


def _methods(rows: list[Row]) -> str:
    """Methods by choice of blocks or windows at the same sparsity."""
    table = []
    for row in rows:
        if row["sparsity"] == 0.0:
            continue
        of_before = row.get("of_rainfusion2")
        table.append(
            {
                "shape": row["shape"],
                "method": row["method"],
                "s": f"{row['sparsity']:g}",
                "density": row["density"],
                "work": row["work"],
                "ms": row["ms"],
                "of rainfusion2's": "" if of_before is None else of_before,
                "times faster than cuDNN dense": row["times_cudnn"],
                "TFLOP/s of work": row["tflops_of_work"],
                "planning, share of cuDNN dense": f"{row['plan_share_of_cudnn']:.2%}",
            }
        )
    return (
        "Work is what the kernel computes in whole tiles, rows and columns counted that are no "
        f"tokens, as a\nshare of dense attention. Planning included in ms.\n\n{markdown(table)}"
    )


def _precision(rows: list[Row]) -> str:
    """Attention of 8 bits beside that of 16, at the same sparsity of the same run."""
    table = []
    for row in rows:
        if row["precision"] != "8bit":
            continue
        same = {"shape": row["shape"], "sparsity": row["sparsity"]}
        other = next(r for r in rows if r["precision"] == "16bit" and same.items() <= r.items())
        table.append(
            {
                "shape": row["shape"],
                "s": f"{row['sparsity']:g}",
                "ms in 8 bits": row["ms"],
                "ms in 16": other["ms"],
                "times faster": round(other["ms"] / row["ms"], 2),
                "times faster than cuDNN dense": row["times_cudnn"],
                "in 16": other["times_cudnn"],
                "TFLOP/s of kept work": row["tflops"],
                "error": row.get("relative_error", ""),
            }
        )
    peers = [
        {
            "dense, shape": row["shape"],
            "attention": _ATTENTION[row["precision"]],
            "ms": row["ms"],
            "times faster than cuDNN": row["times_cudnn"],
            "TFLOP/s": row["tflops"],
            "error": row["relative_error"],
        }
        for row in rows
        if row["precision"] in _ATTENTION and row["sparsity"] == 0.0
    ]
    compared = any("version" in row for row in rows)
    return (
        "Rounding to 8 bits and planning included. The error is that of dense rows against "
        f"float64; 16 bits\nhave .0024.\n\n{markdown(table)}"
    ) + (f"\n{markdown(peers)}" if compared else "")


def _compiled(rows: list[Row]) -> str:
    """Forwards eager and compiled, dense and sparse, and what compilation did."""
    runs = list(dict.fromkeys(row["run"] for row in rows if row["what"] == "time of one forward"))
    table = []
    for run in runs:
        of_run = {row["what"]: row for row in rows if row.get("run") == run}
        first, steps = of_run["first forward"], of_run["10 steps"]
        table.append(
            {
                "forward": run,
                "s": f"{of_run['time of one forward']['sparsity']:g}",
                "ms": of_run["time of one forward"]["ms"],
                "peak GiB": first.get("peak_gib", ""),
                "first forward, s": first["seconds"],
                "graphs": first["graphs"],
                "graphs of 10 more steps": steps["graphs"],
            }
        )
    shares = [
        f"{row['run']}: {row['share']} of {row['against']}"
        for row in rows
        if row["what"] == "share of the time"
    ]
    facts = f"{rows[0]['model']}, {rows[0]['size']}, blocks of each kind: {rows[0]['layers']}."
    return f"{facts}\n\n{markdown(table)}\n" + "".join(f"* {share}\n" for share in shares)


# By prefix of the file's name, the longer first: its tables, or the document that has them.
_TABLES: dict[str, Callable[[list[Row]], str] | str] = {
    "attention": _attention,
    "eight_bit": "[docs/rainfusion.md](rainfusion.md#8-bits)",
    "diffusers_tests": "[docs/diffusers.md](diffusers.md#diffusers-own-tests)",
    "compile": _compiled,
    "engine": _engine,
    "fidelity_confirm": _fidelity,
    "fidelity": _FIDELITY,
    "methods": _methods,
    "models": _MODELS,
    "precision": _precision,
    "parallel_engine": parallel_tables.engines,
    "parallel": parallel_tables.parallel,
    "several": parallel_tables.several,
    "whole": whole_table.tables,
}
DOCUMENTS: dict[str, Callable[[Path], str]] = {
    "README.md": whole_table.render_short,
    "docs/results.md": render,
    "docs/models.md": models_table.render,
    "docs/diffusers.md": diffusers_tests.render,
}


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if it is out of date.")] = False,
) -> None:
    """Bring the results of all documents up to date."""
    for name, make in DOCUMENTS.items():
        document = ROOT / name
        text = document.read_text(encoding="utf-8")
        wanted = replace_results(text, make(RESULTS), name)
        if check and wanted != text:
            raise SystemExit(f"{name} is out of date: run python scripts/update_docs.py")
        if wanted != text:
            temporary = document.with_suffix(".md.new")
            temporary.write_text(wanted, encoding="utf-8")
            temporary.replace(document)


if __name__ == "__main__":
    typer.run(main)
