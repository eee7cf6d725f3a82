"""Writes the results of README.md and docs/models.md from the files under benchmarks/results.

Nothing outside the markers is touched.

python scripts/update_readme.py [--check]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.engine import models_table
from benchmarks.tables import Row, heading, markdown

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
MODELS = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NOTHING = "Nothing has been measured yet.\n"

_ATTENTION_SPARSITIES = (0.0, 0.5, 0.64, 0.8)  # of the table; the file has more


def render(folder: Path) -> str:
    """All results as Markdown, in the order of the file names."""
    sections = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        make = next((f for prefix, f in _TABLES.items() if path.stem.startswith(prefix)), _plain)
        sections.append(f"{heading(path.stem, record)}\n{make(record['rows'])}")
    return "\n".join(sections) or NOTHING


def replace_results(text: str, results: str, document: str = README.name) -> str:
    """A document with `results` between its markers."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"{document} needs the lines {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{results}{END}{after}"


def _attention(rows: list[Row]) -> str:
    """Mixed heads beside cuDNN's dense attention of the same run."""
    table = []
    for shape in dict.fromkeys(row["shape"] for row in rows):
        mine = [r for r in rows if r["shape"] == shape and r["heads"] == "mixed"]
        dense = next((r for r in mine if r["rival"] == "cudnn"), None)
        for row in mine:
            if row["rival"] != "rainfusion" or row["sparsity"] not in _ATTENTION_SPARSITIES:
                continue
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
        "A third of the heads of each kind; planning included. Heads of one kind, random lists and "
        "other\npeers: [docs/kernels.md](docs/kernels.md#measured).\n\n" + markdown(table)
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
    """Methods beside baselines at one sparsity; docs/fidelity.md has the rest."""
    columns = ("method", "alpha", "density", "psnr", "ssim", "seeds")
    table = [
        {column: row[column] for column in columns}
        for row in rows
        if row["group"] in ("methods", "baselines") and row["sparsity"] == 0.5
    ]
    return (
        "Videos of the demo model at s = 0.5 against dense attention, 10 % of the steps dense; "
        "what it means and how it was measured is in [docs/fidelity.md](docs/fidelity.md).\n\n"
        + markdown(table)
    )


def _in_document(rows: list[Row]) -> str:
    """Only where to find them: there is a row for every method and setting."""
    return f"{len(rows)} rows, in tables of [docs/fidelity.md](docs/fidelity.md).\n"


def _in_models(rows: list[Row]) -> str:
    """Only where to find them."""
    return f"{len(rows)} rows, in tables of [docs/models.md](docs/models.md#on-the-gpu).\n"


def _plain(rows: list[Row]) -> str:
    return markdown(rows)


_TABLES: dict[str, Callable[[list[Row]], str]] = {  # by prefix, the longer first
    "attention": _attention,
    "engine": _engine,
    "fidelity_confirm": _fidelity,
    "fidelity": _in_document,
    "models": _in_models,
}


def main(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if it is out of date.")] = False,
) -> None:
    """Bring the results of both documents up to date."""
    for document, results in ((README, render(RESULTS)), (MODELS, models_table.render(RESULTS))):
        text = document.read_text(encoding="utf-8")
        wanted = replace_results(text, results, document.name)
        if check and wanted != text:
            raise SystemExit(f"{document.name} is out of date: run python scripts/update_readme.py")
        if wanted != text:
            temporary = document.with_suffix(".md.new")
            temporary.write_text(wanted, encoding="utf-8")
            temporary.replace(document)


if __name__ == "__main__":
    typer.run(main)
