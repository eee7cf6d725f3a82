"""Documents hold the measured results, and only those."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import update_docs
from benchmarks.engine import models_table, whole_model, whole_table
from benchmarks.tables import sources

ROOT = Path(__file__).resolve().parents[2]


def record(rows) -> dict:
    return {
        "device": "NVIDIA H200",
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-02",
        "command": "python scripts/x.py",
        "note": "",
        "rows": rows,
    }


@pytest.mark.parametrize("name", list(update_docs.DOCUMENTS))
def test_document_is_up_to_date(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    results = update_docs.DOCUMENTS[name](ROOT / "benchmarks" / "results")
    assert update_docs.replace_results(text, results, name) == text


@pytest.mark.parametrize("script", ["update_docs.py", "update_readme.py"])
def test_both_names_of_the_script(script):
    """The former name still works."""
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize("name", list(update_docs.DOCUMENTS))
def test_document_out_of_date_is_refused(monkeypatch, tmp_path, name):
    for other in update_docs.DOCUMENTS:
        path = tmp_path / other
        path.parent.mkdir(exist_ok=True)
        text = (ROOT / other).read_text(encoding="utf-8")
        old = text if other != name else text.replace(update_docs.END, f"more\n{update_docs.END}")
        path.write_text(old, encoding="utf-8")
    monkeypatch.setattr(update_docs, "ROOT", tmp_path)
    with pytest.raises(SystemExit, match=f"{name} is out of date"):
        update_docs.main(check=True)
    update_docs.main(check=False)
    assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()


def test_any_file_becomes_a_table(tmp_path):
    rows = [{"name": "a", "ms": 1.5}, {"name": "b|c", "error": 3.25e-5}]
    (tmp_path / "other.json").write_text(json.dumps(record(rows)))
    text = update_docs.render(tmp_path)
    assert (
        "### other\n\n* NVIDIA H200, 2026-01-02\n* Command: `python scripts/x.py`\n"
        "* Versions: torch 2.13.0\n\n" in text
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
    lines = update_docs.render(tmp_path).splitlines()
    assert lines[-1] == "| s | 64 | 0.5 | 0.5 | 2 | 300 | 5 | 2.5 |"
    assert sum(line.startswith("| s |") for line in lines) == 1


def test_readme_has_a_complete_model(tmp_path):
    def timed(run, s, ms):
        return {"what": "time of one forward", "run": run, "sparsity": s, "ms": ms}

    rows = [
        timed(whole_model.EAGER, 0.0, 20000.0),
        timed(whole_model.EIGHT, 0.8, 5000.0),
        timed(whole_model.FFN, 0.8, 4000.0),
    ]
    (tmp_path / "whole_hunyuanvideo.json").write_text(json.dumps(record(rows)))
    text = whole_table.render_short(tmp_path)
    assert "NVIDIA H200, 2026-01-02; random weights, s = 0.8" in text
    assert text.endswith("| the same, attention in 8 bits | 5.00 | 4.00 |\n")
    clip = {"what": "50 steps", "seconds": 200.0, "dense_steps": 5, "skipped": [7, 9]}
    (tmp_path / "whole_hunyuanvideo_cached-clip.json").write_text(json.dumps(record([clip])))
    text = whole_table.render_short(tmp_path)
    last = "| the same, 50 steps, 5 of them dense, 2 left to a step cache | 4.00 | 5.00 |\n"
    assert text.endswith(last)


def test_no_results(tmp_path):
    assert update_docs.render(tmp_path) == update_docs.NOTHING
    assert whole_table.render_short(tmp_path) == update_docs.NOTHING


def test_what_sources_share_is_said_once():
    one, two = record([]), record([]) | {"versions": {"torch": "2.14.0"}}
    text = sources({"a": one, "b": one, "c": two}, "results")
    assert "| [a](results/a.json) | NVIDIA H200 | 2026-01-02 | `python scripts/x.py` |" in text
    assert text.endswith("\nVersions of a, b: torch 2.13.0.\n\nVersions of c: torch 2.14.0.\n")
    assert sources({"a": one | {"note": "n"}, "b": one}, ".").endswith("\nNote of a: n.\n")
    assert sources({"a": one, "b": one}, ".").endswith("\nVersions: torch 2.13.0.\n")


@pytest.mark.parametrize("text", ["", f"{update_docs.END}\n{update_docs.BEGIN}"])
def test_markers_have_to_be_there(text):
    with pytest.raises(SystemExit, match="once each"):
        update_docs.replace_results(text, "")


def write_models(folder, name, rows) -> None:
    shared = {"model": name, "layers": 2, "size": "81x720x1280", "batch": 1}
    rows = [{**shared, **row} for row in rows]
    (folder / f"models_{name}.json").write_text(json.dumps(record(rows)))


def forward(run, s, ms, **more) -> dict:
    return {"what": "time of one forward", "run": run, "sparsity": s, "ms": ms, **more}


def error(s, against, value, run="engine") -> dict:
    row = {"what": "one forward", "run": run, "sparsity": s, "against": against}
    return {**row, "relative_error": value}


def table_row(text: str, start: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_models_without_files_are_not_run(tmp_path):
    text = models_table.render(tmp_path)
    for name in models_table.FEW_LAYERS:
        assert table_row(text, name) == [name, "not run"]
    assert text.count("\nNot run.\n") == 2


def test_model_with_few_layers(tmp_path):
    rows = [
        {"what": "attention length", "tokens": 75600, "blocks": 2, "method": "piecewise"},
        {"what": "torch.compile", "run": models_table.COMPILED, "failed": "Error: too slow"},
        error(0.0, models_table.EAGER, 5e-3),
        error(0.0, models_table.OPERATOR, 9e-3),
        error(0.5, models_table.OPERATOR, 4e-3),
        error(0.8, models_table.OPERATOR, 3e-3),
        forward(models_table.COMPILED_SPARSE, 0.8, 200.0, ms_per_block=100.0),
        forward(models_table.EAGER, 0.0, 600.0, ms_per_block=300.0),
        forward("engine", 0.0, 500.0, ms_per_block=250.0),
        forward("engine", 0.5, 350.0, ms_per_block=175.0),
    ]
    write_models(tmp_path, "wan2.1-14b", rows)
    text = models_table.render(tmp_path)
    titles = [cell for cell in table_row(text, "model") if cell]
    cells = dict(zip(titles, table_row(text, "wan2.1-14b"), strict=True))
    assert cells == {
        "model": "wan2.1-14b",
        "eager, cuDNN": "600 (300)",
        "blocks": "2",
        "size": "81x720x1280",
        "batch": "1",
        "tokens": "75600",
        "method": "piecewise",
        "torch.compile, cuDNN": "failed",
        "engine, s = 0": "500 (250)",
        "engine, s = 0.5": "350 (175)",
        "torch.compile, RainFusion, s = 0.8": "200 (100)",
        "engine, s = 0.64": "not run",
        "engine, s = 0.8": "not run",
        "error, s = 0": "0.005",
        "error, s = 0.5": "0.004",
        "error, s = 0.8": "0.003",
        "failed": f"{models_table.COMPILED}: Error: too slow",
    }
    source = (
        "| [models_wan2.1-14b](../benchmarks/results/models_wan2.1-14b.json) | NVIDIA H200 "
        "| 2026-01-02 | `python scripts/x.py` |"
    )
    assert f"{source}\n\nVersions: torch 2.13.0.\n" in text
    assert f"{source} 10 | [docs/models.md](models.md#on-the-gpu) |" in update_docs.render(tmp_path)


def test_complete_model(tmp_path):
    step = {"what": "time of one step", "run": "engine", "steps": 3}
    rows = [
        {"what": "device memory", "run": "engine", "gib": 9.5},
        {**step, "sparsity": 0.0, "sparsity_of_run": 0.0, "ms": 11.0},
        {**step, "sparsity": 0.0, "sparsity_of_run": 0.5, "ms": 99.0},
        {**step, "sparsity": 0.5, "sparsity_of_run": 0.5, "ms": 7.0},
        {**error(0.5, models_table.OPERATOR, 2e-3), "relative_error_per_step": [1e-3, 2e-3]},
        forward("engine", 0.5, 6.5),
    ]
    write_models(tmp_path, models_table.COMPLETE, rows)
    text = models_table.render(tmp_path)
    assert "| engine | 0 | not run | 11 | not run | 9.5 |" in text
    assert "| engine | 0.5 | 6.5 | 7 | 0.002 |  |" in text


@pytest.mark.parametrize(("after", "words"), [("a", ": the same."), ("b", "not the same.")])
def test_two_sizes(tmp_path, after, words):
    rows = [
        {"what": "attention length", "tokens": 10, "size": "small"},
        forward("engine", 0.0, 3.0, size="small"),
        {**error(0.0, models_table.EAGER, 1e-3), "size": "small"},
        {**error(0.0, models_table.EAGER, 2e-3), "size": "small"},
        {"what": "engine file", "run": "engine", "sha256": "a", "sha256_after": after},
    ]
    write_models(tmp_path, models_table.TWO_SIZES, rows)
    text = models_table.render(tmp_path)
    assert "| small | 10 | not run | 3 | not run | 0.002 | not run |" in text
    assert words in text
