"""`scripts/fidelity.py windows` on a toy of the demo, whose scene the small blocks divide."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("skimage")
pytest.importorskip("diffusers")

from benchmarks.fidelity import cli as fidelity
from benchmarks.fidelity.configs import Config
from benchmarks.fidelity.sampling import Sampler
from benchmarks.fidelity.windows import METHODS, SMALL_RULES, SmallBlocks, small_scene
from benchmarks.film.catalogue import Catalogue
from benchmarks.film.rules import WindowRule
from helpers.toy_pipeline import save_toy_pipeline
from rainfusion_trt.operator import settings

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """13 x 8 x 12 tokens, one layer of two heads, random weights."""
    folder = tmp_path_factory.mktemp("toy") / "pipeline"
    return save_toy_pipeline(folder, frames=49, height=16, width=24)


def test_small_blocks_keep_every_sample_by_itself(pipeline):
    """A batch of two is twice a batch of one, and everything kept is dense."""
    sampler = Sampler(pipeline, prompt="x", seeds=[3, 4], steps=2, guidance=1.0, device=CPU)
    layout = sampler.layout(1)
    scene = small_scene(layout, 2, 1, 64)
    assert (scene.tokens, scene.sinks) == (layout.tokens, layout.free_begin)
    cut = Catalogue(scene, CPU).cut("cube")
    blocks = SmallBlocks(WindowRule("r", 0.8, scene, *cut, "mean", "means"))
    calls = sampler.capture(1)
    choice, density = blocks.choose(*calls[0])
    both = choice.attend(*calls[0])
    for sample in range(2):
        alone = [x[sample : sample + 1] for x in calls[0]]
        out = blocks.choose(*alone)[0].attend(*alone)
        torch.testing.assert_close(out, both[sample : sample + 1], atol=1e-5, rtol=1e-4)
    assert 0.2 < float(density[0, 0]) < 0.6
    everything = SmallBlocks(WindowRule("r", 0.0, scene, *cut, "mean", "means"))
    result = sampler.masked(Config("windows", "x", 0.8), everything)
    torch.testing.assert_close(result.latents, sampler.dense(), rtol=1e-3, atol=1e-3)


@pytest.mark.skipif(METHODS[0] not in settings.METHODS, reason="the operator has no piecewise")
def test_windows_come_to_one_density(pipeline, tmp_path):
    words = ["windows", "--pipeline", pipeline, "--results", tmp_path, "--steps", 4]
    words += ["--seeds", 2, "--workers", 0, "--device", "cpu", "--name", "toy"]
    CliRunner().invoke(fidelity.app, [str(w) for w in words], catch_exceptions=False)
    record = json.loads((tmp_path / "toy.json").read_text())
    rows = {(row["rule"], row["blocks"]): row for row in record["rows"]}
    package, small = "the package's", "48 x 32"
    wanted = [("dense, PyTorch's", "")] + [(m, package) for m in METHODS]
    assert list(rows) == wanted + [(rule.name, small) for rule in SMALL_RULES]
    assert rows["dense, PyTorch's", ""]["psnr"] > 60
    mine = [row["density"] for key, row in rows.items() if key[1] == small]
    # densities are matched on one step of four; 1 / 36 is a key block
    assert max(mine) - min(mine) < 0.06
    for row in record["rows"]:
        assert len(row["psnr_per_seed"]) == 2
    assert rows[SMALL_RULES[0].name, small]["psnr"] < 100
