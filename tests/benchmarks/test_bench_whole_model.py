"""The benchmark of complete models, rehearsed with tiny networks."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.engine import ffns, whole_model, whole_table
from benchmarks.engine.cases import Case
from rainfusion_trt import enable
from rainfusion_trt.errors import InvalidInputError

SETTINGS = {"tiny": True, "device": "cpu", "dtype": torch.float32}


def run(tmp_path, *arguments: str):
    command = [*arguments, "--tiny", "--compiler", "eager", "--rounds", "1"]
    runner = CliRunner()
    return runner.invoke(
        whole_model.app, [*command, "--output", str(tmp_path)], catch_exceptions=False
    )


@pytest.fixture
def without_8_bits(monkeypatch):
    """Tiny heads are of sizes that 8 bits have no kernel for; nor has the CPU FP8 products."""

    def enabled(*args, precision, **kwargs):
        assert precision in ("16bit", "8bit")
        return enable(*args, **kwargs)

    monkeypatch.setattr(whole_model, "enable", enabled)
    monkeypatch.setattr(whole_model, "quantise_ffns", ffns.ffn_layers)


@pytest.mark.rehearsal
def test_rehearsal(tmp_path, without_8_bits):
    (tmp_path / "skipped.json").write_text("[4, 6, 4]")
    arguments = ["wan2.1-14b", "--steps", "10", "--skipped", str(tmp_path / "skipped.json")]
    result = run(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "whole_wan2.1-14b.json").read_text())
    assert "rehearsal" in record["note"]
    rows = record["rows"]
    names = [whole_model.EAGER, whole_model.COMPILED, whole_model.SPARSE]
    names += [whole_model.EIGHT, whole_model.FFN]
    times = {row["run"]: row for row in rows if row["what"] == "time of one forward"}
    assert list(times) == names
    assert [times[name]["sparsity"] for name in names] == [0.0, 0.0, 0.8, 0.8, 0.8]
    # All blocks are one graph, however many they are.
    first = {row["run"]: row for row in rows if row["what"] == "first forward"}
    assert [first[name]["graphs"] for name in names] == [0, 1, 1, 0, 0]  # 8 bits are 16 here
    clips = {row["run"]: row for row in rows if row["what"] == "10 steps"}
    assert clips[whole_model.EAGER]["how"] == "10 times the median of 1 forwards"
    assert clips[whole_model.EIGHT]["how"] == "run" and clips[whole_model.EIGHT]["skipped"] == []
    table = whole_table.tables(rows)
    assert table.count("blocks compiled, RainFusion in 8 bits, step cache") == 1
    assert "Not measured" not in table
    cached = clips[f"{whole_model.EIGHT}, step cache"]
    assert cached["skipped"] == [4, 6] and cached["dense_steps"] == 1


def test_a_clip_alone(tmp_path, without_8_bits):
    """One forward, whose steps run with a step cache only, in a file of its own."""
    (tmp_path / "skipped.json").write_text("[4, 6]")
    arguments = ["wan2.1-14b", "--forwards", "8bit", "--steps", "10", "--name", "clip"]
    arguments += ["--skipped", str(tmp_path / "skipped.json"), "--no-every-step"]
    result = run(tmp_path, *arguments)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "whole_wan2.1-14b_clip.json").read_text())["rows"]
    times = [row["run"] for row in rows if row["what"] == "time of one forward"]
    assert times == [whole_model.EIGHT]
    clips = [(row["run"], row["how"]) for row in rows if row["what"] == "10 steps"]
    assert clips == [(f"{whole_model.EIGHT}, step cache", "run")]
    assert "step cache" in whole_table.tables(rows)


def test_steps_that_are_skipped_run_no_forward(without_8_bits):
    case = Case.standard("wan2.1-14b", **SETTINGS)
    eager = whole_model.Eager(case)
    makers = whole_model._makers(eager, "eager")
    contender = makers[whole_model.EIGHT]()
    seen = []

    def forward():
        seen.append(contender.routing.sparsity)
        return eager()

    contender.forward = forward
    inputs = contender.owner.inputs
    before = inputs["hidden_states"].clone()
    whole_model.denoise(contender, 20, {5, 6, 11})
    assert seen == [0.0] * 2 + [0.8] * 15
    assert contender.owner.inputs is inputs
    assert torch.equal(inputs["hidden_states"], before)


@pytest.mark.parametrize(
    ("name", "wanted", "left"),
    [
        ("wan2.1-14b", "blocks.1.ffn.net.2", "blocks.1.attn1.to_q"),
        ("hunyuanvideo", "transformer_blocks.0.ff_context.net.2", "single_transformer_blocks.0"),
        ("hunyuanvideo", "single_transformer_blocks.0.proj_mlp", "proj_out"),
    ],
)
def test_layers_of_feed_forward_networks(name, wanted, left):
    case = Case.standard(name, **SETTINGS)
    layers = ffns.ffn_layers(case.transformer())
    assert wanted in layers
    assert not any("attn" in layer for layer in layers)
    assert left not in layers and not any(layer.endswith("proj_out") for layer in layers)


def test_a_network_without_them():
    with pytest.raises(InvalidInputError, match="Linear has no linear layer that is known"):
        ffns.ffn_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "cannot be read as JSON"),
        ('{"a": 1}', "must be a list of steps from 1 to 8"),
        ("[0]", "must be a list of steps from 1 to 8"),
        ("[true]", "must be a list of steps"),
        ("[1, 2, 3, 4, 5]", "5 of 10 steps are more than 40%"),
    ],
)
def test_bad_lists_of_skipped_steps(tmp_path, text, words):
    file = tmp_path / "skipped.json"
    file.write_text(text)
    with pytest.raises(InvalidInputError, match=words):
        whole_model.skipped_steps(file, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["wan2.1-14b", "--skipped", "x.json"], "--skipped needs --steps"),
        (["wan2.1-14b", "--steps", "9", "--skipped", "x.json"], "cannot be read"),
        (["no-model"], "no-model"),
        (["wan2.1-14b", "--steps", "9", "--no-every-step"], "--no-every-step leaves no steps"),
        (["wan2.1-14b", "--forwards", "fp4"], "--forwards fp4: none of eager"),
    ],
)
def test_bad_arguments_end_before_anything_is_made(tmp_path, monkeypatch, arguments, words):
    monkeypatch.setattr(whole_model, "measured", partial(pytest.fail, "it began"))
    with pytest.raises(InvalidInputError, match=words):
        run(tmp_path, *arguments)
