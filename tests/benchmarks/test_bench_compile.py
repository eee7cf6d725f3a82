"""The benchmark of torch.compile, rehearsed with a tiny network."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.engine import compiled
from benchmarks.engine.eager import Eager
from rainfusion_trt.errors import InvalidInputError


@pytest.mark.parametrize(
    "name", ["cogvideox-5b", pytest.param("hunyuanvideo", marks=pytest.mark.rehearsal)]
)
def test_rehearsal(name, tmp_path):
    command = ["--tiny", "--compiler", "eager", "--rounds", "1", "--models", name]
    result = CliRunner().invoke(compiled.app, [*command, "--output", str(tmp_path)])
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / f"compile_{name}.json").read_text())["rows"]
    assert not any("failed" in row for row in rows)
    steps = {row["run"]: row for row in rows if row["what"] == "10 steps"}
    assert len(steps) == 4 and all(
        row["graphs"] == row["graph_breaks"] == 0 for row in steps.values()
    )
    times = [row for row in rows if row["what"] == "time of one forward"]
    assert {row["run"]: row["sparsity"] for row in times} == {
        compiled.EAGER: 0.0,
        compiled.EAGER_SPARSE: 0.5,
        compiled.COMPILED: 0.0,
        compiled.COMPILED_SPARSE: 0.5,
    }
    assert len([row for row in rows if row["what"] == "share of the time"]) == 3


def test_what_is_enabled_shares_the_weights():
    settings = {"tiny": True, "device": "cpu", "dtype": torch.float32}
    eager = Eager(compiled.Case.standard("cogvideox-5b", **settings))
    transformer, twin = eager.transformer, eager.twin().transformer
    for a, b in zip(transformer.parameters(), twin.parameters(), strict=True):
        assert a is b
    assert twin.transformer_blocks[0].attn1 is not transformer.transformer_blocks[0].attn1


def test_a_model_without_a_case():
    with pytest.raises(InvalidInputError, match="allegro"):
        CliRunner().invoke(
            compiled.app, ["--tiny", "--models", "allegro", "--output", "x"], catch_exceptions=False
        )
