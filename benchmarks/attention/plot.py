"""Plot time against density, one panel per shape."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.attention.cases import CUDNN, FA3, FLEX, OURS
from benchmarks.attention.shapes import RANDOM
from benchmarks.figures import save_png

Row = dict[str, Any]
_COLUMNS = 3
_COLOURS = {
    "mixed": "#222222",
    "spatial": "#3b76af",
    "temporal": "#ee854a",
    "textural": "#6acc64",
    RANDOM: "#956cb4",
}
_DENSE_BASELINES = {CUDNN: ("cuDNN, dense", "#c44e52"), FA3: ("FlashAttention-3, dense", "#8c6d31")}


def draw(records: Sequence[dict[str, Any]], folder: Path) -> Path:
    """Write ``attention_density.png``; only figures of one file share a panel.

    Parameters
    ----------
    records
        Results of ``bench_attention.py measure``.
    """
    panels = [
        (record, shape)
        for record in records
        for shape in dict.fromkeys(row["shape"] for row in record["rows"])
    ]
    lines = -(-(len(panels) + 1) // _COLUMNS)  # and one for the legend
    figure = Figure(figsize=(4 * _COLUMNS, 3.1 * lines), layout="constrained")
    grid = list(figure.subplots(lines, _COLUMNS, squeeze=False).flat)
    handles: dict[str, Any] = {}
    for axes, (record, shape) in zip(grid, panels, strict=False):
        _panel(axes, [row for row in record["rows"] if row["shape"] == shape])
        size = next(row["head_size"] for row in record["rows"] if row["shape"] == shape)
        axes.set_title(f"{shape}, D = {size}\n{record['device']}, {record['date']}", fontsize=8)
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    for axes in grid[len(panels) :]:
        axes.axis("off")
    grid[len(panels)].legend(
        handles.values(), handles.keys(), loc="center", fontsize=8, frameon=False
    )
    return save_png(figure, folder / "attention_density.png")


def lists_of(row: Row) -> str:
    """Name the lists of a row: the kinds of its heads, or random lists."""
    return RANDOM if row["method"] == "rainfusion2" else row["heads"]


def _panel(axes: Axes, rows: Sequence[Row]) -> None:
    dense = next((r for r in rows if r["rival"] == OURS and r["density"] == 1.0), None)
    if dense is not None:
        axes.plot(
            [0, 1],
            [0, dense["ms"]],
            color="#999999",
            linewidth=1,
            label="own dense time x density",
        )
    for peer, (label, colour) in _DENSE_BASELINES.items():
        row = next((r for r in rows if r["rival"] == peer), None)
        if row is not None:
            axes.axhline(row["ms"], color=colour, linewidth=1.2, label=label)
    for implementation, style, marker in ((OURS, "-", "o"), (FLEX, "--", "^")):
        for name, colour in _COLOURS.items():
            mine = sorted(
                (r for r in rows if r["rival"] == implementation and lists_of(r) == name),
                key=lambda row: row["density"],
            )
            if mine:
                axes.errorbar(
                    [row["density"] for row in mine],
                    [row["ms"] for row in mine],
                    [
                        [row["ms"] - row["ms_min"] for row in mine],
                        [row["ms_max"] - row["ms"] for row in mine],
                    ],
                    color=colour,
                    linestyle=style,
                    marker=marker,
                    markersize=3.5,
                    linewidth=1,
                    label=f"{'rainfusion' if implementation == OURS else 'FlexAttention'}, {name}",
                )
    axes.set_xlim(0, 1.03)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("share of pairs computed", fontsize=8)
    axes.set_ylabel("ms", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
