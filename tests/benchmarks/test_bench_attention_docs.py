"""Tables, picture and options of scripts/bench_attention.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.attention import cli as bench_attention
from benchmarks.attention import tables
from benchmarks.attention.cases import CUDNN, FA3, FLEX, OURS, PLAN
from rainfusion_trt.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]


def result(rows: list[dict]) -> dict:
    return {
        "device": "NVIDIA H100",
        "date": "2026-01-02",
        "command": "python scripts/x.py",
        "note": "n",
        "rows": rows,
    }


def row(rival, heads, sparsity, density, ms, shape="s", method="rainfusion") -> dict:
    times = {"ms": ms, "ms_min": ms - 0.5, "ms_max": ms + 0.5, "tflops": 100.0}
    where = {"shape": shape, "head_size": 64, "heads": heads, "method": method}
    return {**where, "rival": rival, "sparsity": sparsity, "density": density, **times}


ROWS = [
    row(OURS, "mixed", 0.0, 1.0, 10.0),
    row(CUDNN, "mixed", 0.0, 1.0, 15.0),
    row(FA3, "mixed", 0.0, 1.0, 9.0),
    row(OURS, "spatial", 0.5, 0.5, 6.0),
    row(PLAN, "spatial", 0.5, 0.0, 0.75),
    row(FLEX, "spatial", 0.5, 0.5, 9.0),
    row(OURS, "random", 0.7, 0.35, 5.0, method="rainfusion2"),
    row(OURS, "mixed", 0.0, 1.0, 20.0, shape="t"),
]


def test_tables():
    lines = tables.fill(f"a\n{tables.BEGIN}\nold\n{tables.END}\nb\n", [result(ROWS)]).splitlines()
    assert lines[0] == "a" and lines[-1] == "b" and "old" not in lines
    dense = next(line for line in lines if line.startswith("| s |"))
    assert dense == (
        "| s | 64 | 10 (9.5-10.5) | 100.0 | 15 (14.5-15.5) | 100.0 | 1.50 "
        "| 9 (8.5-9.5) | 100.0 | 0.90 |"
    )
    spatial = next(line for line in lines if line.startswith("| spatial |"))
    assert spatial == (
        "| spatial | 0.5 | 0.500 | 6 (5.5-6.5) | 0.750 | 100.0 | 0.833 | 2.50 "
        "| 9 (8.5-9.5) | 100.0 | 1.50 |"
    )
    assert any(line.startswith("| random lists |  | 0.350 | 5 ") for line in lines)


def test_density_of_flex_is_shown_where_it_is_another():
    other = [*ROWS[:5], row(FLEX, "spatial", 0.5, 0.53, 9.0)]
    lines = tables.fill(f"{tables.BEGIN}{tables.END}", [result(other)]).splitlines()
    assert sum("| FlexAttention density | FlexAttention ms |" in line for line in lines) == 1
    spatial = next(line for line in lines if line.startswith("| spatial |"))
    assert spatial.endswith("| 2.50 | 0.530 | 9 (8.5-9.5) | 100.0 | 1.50 |")


def test_only_one_turn_is_compared():
    """Files that timed cuDNN again for other heads set those beside that call."""
    again = [row(CUDNN, "mixed", 0.0, 1.0, 8.0), row(OURS, "mixed", 0.5, 0.5, 6.0)]
    again += [row(CUDNN, "spatial", 0.0, 1.0, 12.0), row(OURS, "spatial", 0.5, 0.5, 6.0)]
    lines = tables.fill(f"{tables.BEGIN}{tables.END}", [result(again)]).splitlines()
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| mixed")] == ["1.33 |"]
    assert [line.split(" | ")[-1] for line in lines if line.startswith("| spatial")] == ["2.00 |"]


def test_markers_have_to_be_there():
    with pytest.raises(SystemExit, match="once each"):
        tables.fill(f"{tables.END}{tables.BEGIN}", [])


def test_kernels_document_is_up_to_date():
    answer = CliRunner().invoke(bench_attention.app, ["tables", "--check"])
    assert answer.exit_code == 0, answer.output


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "attention.json").write_text(json.dumps(result(ROWS)))
    options = ["plot", "--results", str(tmp_path), "--images", str(tmp_path / "images")]
    answer = CliRunner().invoke(bench_attention.app, options)
    assert answer.exit_code == 0, answer.output
    picture = (tmp_path / "images" / "attention_density.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) < 150_000
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["attention_density.png"]


def test_plotted_lines():
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from benchmarks.attention.plot import _panel

    axes = Figure().subplots()
    _panel(axes, [r for r in ROWS if r["shape"] == "s"])
    assert axes.get_legend_handles_labels()[1] == [
        "own dense time x density",
        "cuDNN, dense",
        "FlashAttention-3, dense",
        "rainfusion, mixed",
        "rainfusion, spatial",
        "rainfusion, random",
        "FlexAttention, spatial",
    ]


def test_committed_picture_is_small():
    assert (ROOT / "docs/images/attention_density.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shapes", "cogvideo"], "known are cogvideox-5b"),
        (["--heads", "temporl"], "known are mixed"),
        (["--baselines", "fa4"], "--baselines fa4: known are cudnn"),
        (["--rivals", "fa4"], "known are cudnn"),
        (["--name", "speed"], "must begin with attention"),
    ],
)
def test_bad_options(options, message):
    answer = CliRunner().invoke(bench_attention.app, ["measure", *options])
    assert isinstance(answer.exception, InvalidInputError)
    assert message in str(answer.exception)
