"""diffusers' own tests with RainFusion: the plugin that enables, the result file and its table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import diffusers_tests

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest, torch
from helpers.routed_models import call_of, run, tiny
from rainfusion_trt.routing import routing_of

def test_it_is_enabled():
    model, transformer = tiny("wan2.1-1.3b", num_layers=1)
    run(transformer, call_of(model, transformer))
    assert routing_of(transformer).routed == 1

def test_that_fails():
    assert False

@pytest.mark.skip
def test_that_is_skipped():
    pass
"""


def outcome(sparsity: str, passed: list[str], failed: list[str]) -> dict:
    tests = {"passed": passed, "failed": failed, "error": [], "skipped": []}
    return {"sparsity": sparsity, "made": {}, "tests": tests}


@pytest.mark.slow
@pytest.mark.parametrize(("sparsity", "passes", "made"), [("0", True, 1), ("without", False, 0)])
def test_plugin(tmp_path, sparsity, passes, made):
    """In a folder whose package of tests is another one, as in diffusers' repository."""
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "test_models_transformer_wan.py").write_text(TESTS)
    path = [ROOT / "tests" / "helpers", ROOT, ROOT / "tests"]
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + ["-p", "enabled_in_diffusers", "--rainfusion-outcomes", tmp_path, "tests"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "RAINFUSION_SPARSITY": sparsity,
        },
        check=False,
    )
    record = json.loads((tmp_path / f"{sparsity}.json").read_text())
    assert record["made"]["WanTransformer3DModel"] == made
    name = "tests/test_models_transformer_wan.py::"
    assert (f"{name}test_it_is_enabled" in record["tests"]["passed"]) == passes
    assert f"{name}test_that_fails" in record["tests"]["failed"]
    assert record["tests"]["skipped"] == [f"{name}test_that_is_skipped"]
    (row,) = diffusers_tests.rows([record])
    assert row["file"] == "wan" and row["passed"] == int(passes)
    assert "test_that_fails" in row["not passed"]


def test_failures_are_in_the_table(tmp_path):
    names = [f"a/test_models_transformer_{kind}.py::test_x" for kind in ("wan", "allegro")]
    outcomes = [outcome("without", names, []), outcome("0", names[:1], names[1:])]
    outcomes.append(outcome("0.5", [], names))
    record = {"commit": "0123456789abcdef", "date": "2026-01-02"}
    record |= {"versions": {"diffusers": "0.42.1", "torch": "2.13.0"}}
    record["rows"] = diffusers_tests.rows(outcomes)
    (tmp_path / "diffusers_tests.json").write_text(json.dumps(record))
    table = diffusers_tests.render(tmp_path)
    assert "| allegro | 1 | 0, 1 failed | 0, 1 failed |" in table
    assert "| all | 2 | 1, 1 failed | 0, 2 failed |" in table
    assert "commit 0123456789ab with diffusers 0.42.1" in table
