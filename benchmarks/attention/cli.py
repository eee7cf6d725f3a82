"""Time RainFusion's kernels beside their baselines, in turn in one run.

    python scripts/bench_attention.py measure [--shapes cogvideox-5b ...] [--heads mixed ...]
    python scripts/bench_attention.py plot      # docs/images/attention_density.png
    python scripts/bench_attention.py tables    # the tables of docs/kernels.md

``measure`` needs a GPU. Every timed case is first checked on sampled query rows against float32.
The card's clock falls as it heats, so compare only figures of one shape in one file: they are taken
in turn. Every round has an order of its own, and each timing follows an untimed replay of the same
case. ``plot`` needs the extra ``study``; it and ``tables`` need no GPU.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.attention.cases import BASELINES, FA3, cases_of
from benchmarks.attention.shapes import HEADS, SHAPES
from benchmarks.record import RESULTS, write_result
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError

logger = logging.getLogger("rainfusion_trt.bench")
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
ROOT = Path(__file__).resolve().parents[2]
ResultsOption = Annotated[Path, typer.Option(help="Folder of the JSON files, attention*.json.")]

_NOTE = (
    "each timing after an untimed replay of the same call; sparsity read on the device; the time "
    "of our kernels includes planning, that of FlexAttention does not; planning holds the gather "
    "of textural heads' keys (device time by the profiler, gather_ms); random lists: the best "
    "blocks of random means, no first-frame sink; FlexAttention compiled with its defaults, on "
    "copies of q, k and v whose blocks begin at multiples of 128, made beforehand; it cannot take "
    "blocks of 192 x 96 or 192 x 80, so that its lists are of 128 x 128 blocks: spatial and "
    "temporal heads by the same rule at the same sparsity, random ones drawn anew at our density; "
    "its rows are checked against its own lists, and its density and TFLOP/s are of its own "
    "lists; textural heads keep columns of single tokens, not blocks, and mixed heads contain "
    "textural ones, so that FlexAttention has only lists of spatial, temporal and random heads"
)


@app.command()
def measure(
    shapes: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    heads: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(HEADS)}.")] = None,
    sparsities: Annotated[list[float] | None, typer.Option(help="s of forced kinds.")] = None,
    densities: Annotated[list[float] | None, typer.Option(help="Of random lists.")] = None,
    flex_sparsities: Annotated[list[float] | None, typer.Option(help="s with Flex.")] = None,
    baselines: Annotated[
        list[str] | None,
        typer.Option(
            "--baselines", "--rivals", help=f"Of {', '.join(BASELINES)}; ours is always there."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each case.", min=7)] = 7,
    name: Annotated[str, typer.Option(help="File name, attention...")] = "attention",
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Time attention and write ``NAME.json``, anew after every shape."""
    from benchmarks.attention.baselines import Workload, has_flash_attention_3
    from benchmarks.attention.timing import check_cases, graph_capture, time_in_turn

    _check_names("--shapes", shapes, SHAPES)
    _check_names("--heads", heads, HEADS)
    _check_names("--baselines", baselines, BASELINES)
    if not name.startswith("attention"):
        raise InvalidInputError(f"--name {name} must begin with attention, as tables look for it")
    if not torch.cuda.is_available():
        raise InvalidInputError("there is no CUDA GPU to measure on")
    chosen = list(baselines or BASELINES)
    notes = [_NOTE]
    if FA3 in chosen and not has_flash_attention_3():
        if baselines:
            raise InvalidInputError("--baselines fa3: flash_attn_interface cannot be imported")
        chosen.remove(FA3)
        notes.append("FlashAttention-3 was not installed")
    options: dict[str, Any] = {
        "heads": heads,
        "sparsities": sparsities,
        "densities": densities,
        "flex_sparsities": flex_sparsities,
    }
    cases = cases_of(baselines=chosen, **{key: value for key, value in options.items() if value})
    rows: list[dict[str, Any]] = []
    for shape in shapes or SHAPES:
        workload = Workload(SHAPES[shape], torch.bfloat16, torch.device("cuda"))
        checked, left_out = check_cases(workload, cases, graph_capture())
        logger.info("%s: %d cases checked", shape, len(checked))
        measured = time_in_turn(shape, SHAPES[shape], checked, rounds)
        del workload, checked
        torch.cuda.empty_cache()
        rows += measured
        notes += [f"{shape}: {why}" for why in left_out]
        _show(measured)
        logger.info("wrote %s", write_result(name, rows, note="; ".join(notes), folder=output))


@app.command()
def plot(
    results: ResultsOption = RESULTS,
    images: Annotated[Path, typer.Option(help="Where the picture goes.")] = ROOT / "docs/images",
) -> None:
    """Draw time against density for every shape and baseline."""
    from benchmarks.attention.plot import draw

    path = draw(_records(results), images)
    logger.info("%s: %d kB", path, path.stat().st_size // 1000)


@app.command()
def tables(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if out of date.")] = False,
    results: ResultsOption = RESULTS,
    document: Annotated[Path, typer.Option(help="File to bring up to date.")] = (
        ROOT / "docs/kernels.md"
    ),
) -> None:
    """Bring the tables of docs/kernels.md up to date with the results."""
    from benchmarks.attention.tables import fill

    text = document.read_text(encoding="utf-8")
    wanted = fill(text, _records(results))
    if check and wanted != text:
        raise SystemExit(f"{document} is out of date: run python scripts/bench_attention.py tables")
    if wanted != text:
        temporary = document.with_name(f".{document.name}.part")
        temporary.write_text(wanted, encoding="utf-8")
        temporary.replace(document)


def _records(folder: Path) -> list[dict[str, Any]]:
    """The files of attention runs, in the order of their names."""
    paths = sorted(folder.glob("attention*.json"))
    if not paths:
        raise InvalidInputError(f"{folder} has no attention*.json: run `measure` first")
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _check_names(option: str, given: list[str] | None, known: Iterable[str]) -> None:
    if unknown := [name for name in given or () if name not in known]:
        raise InvalidInputError(f"{option} {', '.join(unknown)}: known are {', '.join(known)}")


def _show(rows: list[dict[str, Any]]) -> None:
    table = Table()
    columns = ("shape", "heads", "rival", "sparsity", "density", "ms", "ms_min", "ms_max", "tflops")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(str(row[column]) for column in columns))
    Console(width=130).print(table)


if __name__ == "__main__":
    run_app(app, show_time=True)
