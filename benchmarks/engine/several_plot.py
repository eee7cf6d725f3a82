"""Plot how often faster several GPUs are, from the files of `benchmarks.engine.several`.

python -m benchmarks.engine.several_plot several_hunyuanvideo_8.json several_wan2.1-14b_8.json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.engine.several_attention import PLANNED
from benchmarks.engine.several_forwards import FORWARD, HALVES, OVERLAP, STEP
from benchmarks.figures import save_png
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError

PICTURES = Path(__file__).resolve().parents[2] / "docs/images"
_COLOURS = {
    FORWARD: "#3b76af",
    OVERLAP: "#ee854a",
    PLANNED: "#6acc64",
    f"{STEP}, {HALVES}": "#956cb4",
}
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    files: Annotated[list[Path], typer.Argument(help="One panel each.")],
    output: Annotated[Path, typer.Option(help="Folder of the picture.")] = PICTURES,
) -> None:
    """Write ``several_gpus.png``."""
    print(draw(files, output))


def draw(files: Sequence[Path], folder: Path) -> Path:
    """A panel a file; solid lines are sparse, dotted ones dense.

    Raises
    ------
    InvalidInputError
        A file that `benchmarks.engine.several` has not written.
    """
    records = [_read(file) for file in files]
    figure = Figure(figsize=(4.4 * len(files), 3.9), layout="constrained")
    for axes, record in zip(
        figure.subplots(1, len(files), squeeze=False).flat, records, strict=True
    ):
        _panel(axes, record)
    return save_png(figure, folder / "several_gpus.png")


def _read(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{file} cannot be read: {error}") from error
    if not any(row.get("what") == "speed-up" and "gpus" in row for row in record.get("rows", ())):
        raise InvalidInputError(
            f"{file} has no speed-up of several GPUs: benchmarks.engine.several"
        )
    return record


def _panel(axes: Axes, record: dict[str, Any]) -> None:
    rows = [row for row in record["rows"] if row["what"] == "speed-up"]
    most = max(row["gpus"] for row in rows)
    axes.plot([1, most], [1, most], color="#999999", linewidth=1, label="as many times as GPUs")
    for run, colour in _COLOURS.items():
        for s in sorted({row["sparsity"] for row in rows if row["run"] == run}):
            points = {1: 1.0} | {
                row["gpus"]: row["times"]
                for row in rows
                if row["run"] == run and row["sparsity"] == s
            }
            style = ":" if s == 0 else "-"
            label = f"{run}, s = {s:g}"
            axes.plot(
                *zip(*points.items(), strict=True), style, marker="o", color=colour, label=label
            )
    row = rows[0]
    axes.set_title(
        f"{row['model']}, {row['size']}, {row['layers']} blocks of a kind\n"
        f"{record['device']}, {record['date']}",
        fontsize=8,
    )
    axes.set_xlabel("GPUs")
    axes.set_ylabel("times faster than one")
    axes.legend(fontsize=6)


if __name__ == "__main__":
    run_app(app, show_time=False)
