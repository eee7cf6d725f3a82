"""What ``scripts/diffusers_tests.sh`` saw: as a result file, and as the table in docs/diffusers.md.

``python -m benchmarks.diffusers_tests CHECKOUT OUTCOMES``: the repository whose tests ran, and the
folder in which ``tests/helpers/enabled_in_diffusers.py`` left the outcome of each.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.record import write_result
from benchmarks.tables import Row, markdown

NAME = "diffusers_tests"
KINDS = ("passed", "failed", "error", "skipped")
CHOICES = {"without": "without RainFusion", "0": "sparsity 0", "0.5": "sparsity 0.5"}


def _file_of(test: str) -> str:
    return Path(test.partition("::")[0]).stem.removeprefix("test_models_transformer_")


def rows(outcomes: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a sparsity and file of tests: counts, and the tests that did not pass."""
    table = []
    for outcome in outcomes:
        tests = outcome["tests"]
        counts = {kind: Counter(map(_file_of, tests[kind])) for kind in KINDS}
        for file in sorted(set().union(*counts.values())):
            lost = [t for kind in ("failed", "error") for t in tests[kind] if _file_of(t) == file]
            table.append(
                {
                    "sparsity": outcome["sparsity"],
                    "file": file,
                    **{kind: counts[kind][file] for kind in KINDS},
                    "not passed": [test.partition("::")[2] for test in lost],
                }
            )
    return table


def render(folder: Path) -> str:
    """The tests that passed, a line for each file of them and one for all."""
    path = folder / f"{NAME}.json"
    if not path.is_file():
        return "Nothing has been measured yet.\n"
    record = json.loads(path.read_text(encoding="utf-8"))
    cells = {(row["file"], row["sparsity"]): row for row in record["rows"]}
    table: list[Row] = []
    for file in dict.fromkeys(row["file"] for row in record["rows"]):
        table.append({"tests of": file} | _passed([cells[file, s]] for s in CHOICES))
    every = ([row for row in record["rows"] if row["sparsity"] == s] for s in CHOICES)
    table.append({"tests of": "all"} | _passed(every))
    versions = record["versions"]
    return (
        f"Tests that passed, at commit {record['commit'][:12]} with diffusers "
        f"{versions['diffusers']} and PyTorch {versions['torch']}, {record['date']}.\nThe others "
        "of a file were skipped: they need a GPU or a download, or the model has no such feature."
        f"\n\n{markdown(table)}"
    )


def _passed(columns: Iterable[list[Row]]) -> Row:
    """Counts by choice, with the failures where there are any."""
    cells: Row = {}
    for title, rows in zip(CHOICES.values(), columns, strict=True):
        lost = sum(row["failed"] + row["error"] for row in rows)
        passed = sum(row["passed"] for row in rows)
        cells[title] = f"{passed}, {lost} failed" if lost else passed
    return cells


def main(checkout: Path, folder: Path) -> None:
    commit = subprocess.check_output(["git", "-C", checkout, "rev-parse", "HEAD"], text=True)
    outcomes = [json.loads((folder / f"{s}.json").read_text()) for s in CHOICES]
    path = write_result(
        NAME,
        rows(outcomes),
        note="diffusers' own tests of its video transformers, each transformer through enable().",
        facts={
            "commit": commit.strip(),
            "command": "scripts/diffusers_tests.sh CHECKOUT",
            "transformers": {outcome["sparsity"]: outcome["made"] for outcome in outcomes},
        },
    )
    print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
