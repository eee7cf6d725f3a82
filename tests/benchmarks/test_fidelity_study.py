"""scripts/fidelity.py from study to pictures and tables, on a toy pipeline with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

pytest.importorskip("skimage")
pytest.importorskip("matplotlib")

from benchmarks.fidelity import cli as fidelity
from benchmarks.fidelity import tables
from benchmarks.fidelity.cells import NOTHING, find
from benchmarks.fidelity.configs import (
    KIND_MAP,
    Config,
    confirming_configs,
    study_configs,
)
from benchmarks.fidelity.confirmed import confirmed
from benchmarks.fidelity.pictures import LIMIT
from benchmarks.fidelity.sampling import Sampler
from helpers.toy_pipeline import save_toy_pipeline
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import Kind

ROOT = Path(__file__).resolve().parents[2]

CPU = torch.device("cpu")
STEPS = 4


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> Path:
    """4 x 8 x 10 tokens, one layer of two heads; random weights, none of them zero."""
    folder = tmp_path_factory.mktemp("toy") / "pipeline"
    return save_toy_pipeline(folder, frames=13, height=16, width=20)


@pytest.fixture(scope="module")
def sampler(pipeline) -> Sampler:
    return sampler_of(pipeline, seeds=[3, 4])


def sampler_of(pipeline: Path, seeds) -> Sampler:
    return Sampler(pipeline, prompt="x", seeds=seeds, steps=STEPS, guidance=1.0, device=CPU)


@pytest.fixture(scope="module")
def results(pipeline, tmp_path_factory) -> Path:
    """Results of `study` and `tensors` at one sparsity."""
    folder = tmp_path_factory.mktemp("results")
    shared = ["--pipeline", str(pipeline), "--results", str(folder), "--output", str(folder)]
    shared += ["--steps", str(STEPS), "--device", "cpu"]
    options = ["--seeds", "2", "--sparsity", "0.5", "--workers", "0"]
    invoke("study", *shared, *options)
    invoke("tensors", *shared)
    more = ["--pipeline", str(pipeline), "--results", str(folder), "--steps", "2"]
    invoke("confirm", *more, "--device", "cpu", "--seeds", "2", "--workers", "0")
    return folder


def invoke(*arguments: str) -> None:
    CliRunner().invoke(fidelity.app, list(arguments), catch_exceptions=False)


class TestSampler:
    def test_noise_depends_on_the_seed_alone(self, sampler, pipeline):
        both = sampler.dense()
        alone = sampler_of(pipeline, seeds=[4]).dense()
        torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-4)
        assert not torch.equal(both[0], both[1])

    def test_sparse_differs_and_counts_its_pairs(self, sampler):
        dense = sampler.dense()
        result = sampler.operator(Config("methods", "rainfusion", 0.5, dense_fraction=0.25))
        assert result.dense_steps == 1
        assert result.kinds.shape == (STEPS, 1, 2, 2)
        assert (result.kinds[0] == Kind.DENSE).all()
        assert (result.densities[0] == 1).all()
        assert result.sparse_density < 1
        assert result.density == pytest.approx((1 + 3 * result.sparse_density) / 4)
        assert not torch.equal(result.latents, dense)
        torch.testing.assert_close(sampler.dense(), dense)  # the operator is off again

    def test_nothing_masked_is_dense(self, sampler):
        from benchmarks.fidelity.rules import FixedMask

        tokens = sampler.layout(1).tokens
        rule = FixedMask(torch.ones(tokens, tokens, dtype=torch.bool))
        result = sampler.masked(Config("ablations", "none", 0.5), rule)
        assert result.density == 1
        torch.testing.assert_close(result.latents, sampler.dense(), rtol=1e-3, atol=1e-3)

    def test_bad_input(self, sampler, tmp_path):
        with pytest.raises(InvalidInputError, match="no diffusers pipeline"):
            sampler_of(tmp_path, seeds=[0])
        with pytest.raises(InvalidInputError, match=r"step=4 must be in \[0, 4\)"):
            sampler.capture(STEPS)


def test_study_has_every_configuration(results):
    record = json.loads((results / "fidelity.json").read_text())
    rows = record["rows"]
    assert len(rows) == len(study_configs((0.5,)))
    assert "not run" not in record["note"]
    control = rows[0]
    assert (control["group"], control["density"]) == ("control", 1.0)
    assert control["psnr"] > 60
    for row in rows:
        assert len(row["psnr_per_seed"]) == row["seeds"] == 2
        assert row["psnr"] == pytest.approx(sum(row["psnr_per_seed"]) / 2, abs=1e-3)
        assert row["psnr_min"] <= row["psnr"]
        assert 0 < row["density"] <= 1
    main = find(record, "methods", "rainfusion", 0.5)
    assert main["psnr"] < control["psnr"]
    window = find(record, "baselines", "window", 0.5)
    assert window["sparse_density"] == pytest.approx(main["sparse_density"], abs=0.01)
    assert main["nominal_density"] == 0.625  # one step of four is dense
    kept = load_file(results / "fidelity.safetensors")
    assert kept["dense"].shape == (2, 4, 16, 16, 20)
    assert kept["kinds"].shape == (STEPS, 1, 2, len(Kind))
    assert (kept["kinds"].sum(-1) == 2).all()
    assert KIND_MAP in study_configs((0.5,))  # where `kinds` comes from


def test_tensors_have_every_layer(results):
    rows = json.loads((results / "fidelity_tensors.json").read_text())["rows"]
    by_method = {row["method"]: row for row in rows if row.get("sink_frames", 1) == 1}
    assert by_method["dense"]["relative_error"] < 1e-5
    assert by_method["operator against masked attention"]["relative_error"] < 1e-5
    assert by_method["operator against masked attention"]["density_difference"] < 1e-5
    assert by_method["window"]["relative_error"] > 1e-3
    only = [by_method[f"{kind} only"] for kind in ("spatial", "temporal", "textural")]
    assert by_method["best kind"]["relative_error"] <= min(r["relative_error"] for r in only) + 1e-6
    sample = by_method["sample against all tokens"]
    assert len(sample["recall_temporal"]) == len(sample["recall_spatial_all"]) == 2
    maps = load_file(results / "fidelity_tensors.safetensors")
    attention = [value for name, value in maps.items() if name.startswith("attention.")]
    assert attention
    for value in attention:  # rows of probabilities sum to 1
        assert value.sum(1).mean().item() * 336 / len(value) == pytest.approx(1, abs=1e-3)


def test_confirmed_gains_are_of_the_same_seeds(results):
    record = json.loads((results / "fidelity_confirm.json").read_text())
    assert [row["psnr"] for row in record["rows"]] != []
    table = confirmed(record).splitlines()
    assert len(table) == 2 + len(confirming_configs()) - 1  # without the control
    rows = {(r["method"], r["sparsity"], r["alpha"]): r["psnr_per_seed"] for r in record["rows"]}
    ours, peer = rows["rainfusion", 0.5, 0.9], rows["random blocks", 0.5, 0.9]
    gains = [a - b for a, b in zip(ours, peer, strict=True)]
    error = abs(gains[0] - gains[1]) / 2  # of a mean of two
    assert table[2].split(" | ")[-1] == f"{sum(gains) / 2:+.1f} ± {error:.1f} |"


def test_pictures_and_tables(results, pipeline, tmp_path):
    for name in ("fidelity-tables.md", "demo-study.md"):
        shutil.copy(ROOT / "docs" / name, tmp_path)
    document = tmp_path / "demo-study.md"
    images = tmp_path / "images"
    where = ["--results", str(results)]
    invoke("pictures", "--pipeline", str(pipeline), "--output", str(results), *where, "--images",
           str(images))  # fmt: skip
    assert {path.name for path in images.iterdir()} == set(tables.PICTURES)
    assert all(0 < path.stat().st_size < LIMIT for path in images.iterdir())
    invoke("tables", *where, "--documents", str(tmp_path))
    text = document.read_text()
    assert NOTHING not in text
    main = find(json.loads((results / "fidelity.json").read_text()), "methods",
                        "rainfusion", 0.5)  # fmt: skip
    assert f"**{main['psnr']:.1f} dB**" in text
    assert "![PSNR against realised density](images/fidelity_psnr.png)" in text
    invoke("tables", "--check", *where, "--documents", str(tmp_path))
    document.write_text(text.replace(f"**{main['psnr']:.1f} dB**", "**99.9 dB**"))
    with pytest.raises(SystemExit, match="out of date"):
        fidelity.tables(check=True, results=results, documents=tmp_path)


def test_no_time_is_said(pipeline, tmp_path):
    arguments = ["--pipeline", str(pipeline), "--results", str(tmp_path), "--output", str(tmp_path)]
    arguments += ["--steps", "2", "--seeds", "1", "--workers", "0", "--device", "cpu"]
    invoke("study", *arguments, "--group", "control", "--max-minutes", "-1")
    record = json.loads((tmp_path / "fidelity.json").read_text())
    assert record["rows"] == []
    assert "1 of 1 configurations were not run" in record["note"]


def test_pictures_need_results(pipeline, tmp_path):
    with pytest.raises(InvalidInputError, match=r"run `fidelity.py study` first"):
        fidelity.pictures(pipeline, tmp_path, tmp_path, tmp_path)


def test_documents_are_up_to_date():
    docs = ROOT / "docs"
    for name, sections in tables.contents(ROOT / "benchmarks/results", docs / "images").items():
        text = (docs / name).read_text(encoding="utf-8")
        assert tables.fill(text, sections) == text
