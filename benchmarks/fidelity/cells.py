"""Format rows of results as cells of a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.fidelity.configs import MAIN_SETTINGS

Row = dict[str, Any]
NOTHING = "Not run yet.\n"
MAIN = {
    "dense_fraction": 0.1,
    "sink_frames": MAIN_SETTINGS.sink_frames,
    "alpha": MAIN_SETTINGS.alpha,
}


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table; an empty table says so."""
    if not rows:
        return NOTHING
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"


def find(record: Row, group: str, method: str, sparsity: float, **other: Any) -> Row | None:
    """The row of a run, with the settings of `MAIN` but for those given; None if there is none."""
    wanted = {"group": group, "method": method, "sparsity": sparsity, **MAIN, **other}
    return next(
        (row for row in record["rows"] if all(row[k] == value for k, value in wanted.items())), None
    )


def sparsities(record: Row) -> list[float]:
    """The sparsities of a record in ascending order, without 0."""
    return sorted({row["sparsity"] for row in record["rows"] if row["sparsity"] > 0})


def run_cells(row: Row) -> Row:
    """A run's densities and scores, as text."""
    return {
        "method": row["method"],
        "s": f"{row['sparsity']:g}",
        "nominal density": f"{row['nominal_density']:.3f}" if "nominal_density" in row else "",
        "density": f"{row['density']:.3f}",
        "PSNR": f"{row['psnr']:.2f} ± {row['psnr_std']:.2f}",
        "worst seed": f"{row['psnr_min']:.2f}",
        "SSIM": f"{row['ssim']:.4f} ± {row['ssim_std']:.4f}",
    }


def kind_cells(row: Row) -> Row:
    """Shares of the kinds of heads, as text."""
    kinds = ("spatial", "temporal", "textural")
    if not sum(row.get(kind, 0.0) for kind in kinds):
        return {}  # rainfusion2 knows no kinds
    return {f"{kind} heads": f"{row[kind]:.0%}" for kind in kinds}
