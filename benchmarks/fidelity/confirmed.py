"""Make the table of the runs with more seeds."""

from __future__ import annotations

from math import sqrt
from statistics import mean, stdev

from benchmarks.fidelity.cells import Row, markdown

PEER = "random blocks"  # every run is set against it, seed by seed


def confirmed(record: Row) -> str:
    """PSNR and SSIM with their standard errors, and the gain over random blocks.

    Parameters
    ----------
    record : dict
        `fidelity_confirm.json`. The standard error of the gain is that of the differences of the
        same seeds, which is what tells whether a gain is chance.
    """
    rows = [row for row in record["rows"] if row["group"] != "control"]
    table = []
    for s in dict.fromkeys(row["sparsity"] for row in rows):
        mine = [row for row in rows if row["sparsity"] == s]
        peer = next((row for row in mine if row["method"] == PEER), None)
        table += [_cells(row, peer) for row in mine]
    return markdown(table)


def _cells(row: Row, peer: Row | None) -> Row:
    arm = row["group"] != "baselines" and row["method"] != "rainfusion2"
    cells = {
        "s": f"{row['sparsity']:g}",
        "method": row["method"],
        "alpha": f"{row['alpha']:g}" if arm else "",
        "density": f"{row['density']:.3f}",
        "PSNR": _with_error(row["psnr_per_seed"], 1),
        "SSIM": _with_error(row["ssim_per_seed"], 3),
        f"dB over {PEER}": "",
    }
    if peer is not None and row is not peer:
        pairs = zip(row["psnr_per_seed"], peer["psnr_per_seed"], strict=True)
        cells[f"dB over {PEER}"] = _with_error([a - b for a, b in pairs], 1, sign="+")
    return cells


def _with_error(values: list[float], digits: int, sign: str = "") -> str:
    error = stdev(values) / sqrt(len(values))
    return f"{mean(values):{sign}.{digits}f} ± {error:.{digits}f}"
