"""Measure a case and keep its rows in a file, also those of a measurement that breaks off."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Row, failed_row, release
from benchmarks.record import write_result

Save = Callable[[list[Row]], None]


def measured(
    job: str,
    case: Case,
    measure: Callable[[Save], list[Row]],
    *,
    file: str,
    note: str,
    output: Path,
) -> list[Row]:
    """Rows of a measurement, printed and written whenever a part is done.

    Parameters
    ----------
    job
        What printed rows and a row of failure call it.
    measure
        Gives its callback the rows so far, and returns all of them.
    file
        Name of the JSON file in `output`.
    note
        Of the file, but for a rehearsal's.
    """
    note = note if case.width == "full" else "a rehearsal with a tiny network; no result"
    facts = case.facts()
    done: list[Row] = []

    def save(rows: list[Row]) -> None:
        for row in rows[len(done) :]:
            print({"job": job, **row}, flush=True)
        done[:] = rows
        write_result(file, [{**facts, **row} for row in rows], note=note, folder=output)

    try:
        rows = measure(save)
    except Exception as error:  # the next one still runs; the row and the exit status tell
        rows = [*done, failed_row("benchmark", job, error)]
    save(rows)
    release()
    return rows
