"""The README holds the measured results, and only those."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_SPEC = importlib.util.spec_from_file_location("update_readme", ROOT / "scripts/update_readme.py")
update_readme = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(update_readme)


def record(rows) -> dict:
    return {
        "device": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-02",
        "command": "python scripts/x.py",
        "note": "",
        "rows": rows,
    }


def test_readme_is_up_to_date():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = update_readme.render(ROOT / "benchmarks" / "results")
    assert update_readme.replace_results(text, results) == text


def test_any_file_becomes_a_table(tmp_path):
    rows = [{"name": "a", "ms": 1.5}, {"name": "b|c", "error": 3.25e-5}]
    (tmp_path / "other.json").write_text(json.dumps(record(rows)))
    text = update_readme.render(tmp_path)
    assert (
        "NVIDIA H200, 2026-01-02. Command: `python scripts/x.py`. Versions: torch 2.13.0." in text
    )
    assert (
        "| name | ms | error |\n| --- | --- | --- |\n| a | 1.5 |  |\n| b\\|c |  | 3.25e-05 |"
        in text
    )


def test_attention_is_set_beside_cudnn_of_the_same_shape(tmp_path):
    shared = {"shape": "s", "head_size": 64, "heads": "mixed", "density": 0.5, "tflops": 300.0}
    rows = [
        {**shared, "rival": "rainfusion", "sparsity": 0.5, "ms": 2.0},
        {**shared, "rival": "rainfusion", "sparsity": 0.9, "ms": 1.0},
        {**shared, "rival": "cudnn", "sparsity": 0.0, "ms": 5.0},
        {**shared, "heads": "spatial", "rival": "rainfusion", "sparsity": 0.5, "ms": 9.0},
    ]
    (tmp_path / "attention.json").write_text(json.dumps(record(rows)))
    lines = update_readme.render(tmp_path).splitlines()
    assert lines[-1] == "| s | 64 | 0.5 | 0.5 | 2 | 300 | 5 | 2.5 |"
    assert sum(line.startswith("| s |") for line in lines) == 1


def test_no_results(tmp_path):
    assert update_readme.render(tmp_path) == update_readme.NOTHING


@pytest.mark.parametrize("text", ["", f"{update_readme.END}\n{update_readme.BEGIN}"])
def test_markers_have_to_be_there(text):
    with pytest.raises(SystemExit, match="once each"):
        update_readme.replace_results(text, "")
