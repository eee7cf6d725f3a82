"""scripts/train_demo.py from prepare to mp4, at a reduced size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from benchmarks.training import cli as train_demo
from rainfusion_trt.demo.trained import TRAINED_CONFIG
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.models import VideoSize

SIZE = VideoSize(5, 32, 48)
OPTIONS = ["--steps", "4", "--batch", "1", "--sample-steps", "2", "--samples", "2"]
OPTIONS += ["--device", "cpu"]


@pytest.fixture
def reduced(monkeypatch):
    config = {**TRAINED_CONFIG, "num_attention_heads": 1, "num_layers": 1}
    config |= {"sample_frames": 5, "sample_height": 4, "sample_width": 6}
    monkeypatch.setattr(train_demo, "TRAINED_CONFIG", config)
    monkeypatch.setattr(train_demo, "TRAINED_SIZE", SIZE)
    generator = torch.Generator().manual_seed(0)

    def noise(name: str, *, height: int, width: int, wheel: Path | None) -> torch.Tensor:
        return torch.randint(0, 256, (7, 3, height, width), generator=generator).byte()

    monkeypatch.setattr(train_demo, "read_clip", noise)


def invoke(*arguments: str) -> None:
    CliRunner().invoke(train_demo.app, list(arguments), catch_exceptions=False)


def test_from_clips_to_mp4(reduced, tmp_path):
    pytest.importorskip("av")
    data, output = tmp_path / "clips.safetensors", tmp_path / "trained"
    invoke("prepare", "--output", str(data), "--clip", "bikes", "--clip", "carphone")
    train = ["train", "--data", str(data), "--output", str(output), *OPTIONS]
    invoke(*train, "--max-minutes", "0")
    assert json.loads((output / "loss.json").read_text())["loss"] == []
    assert not (output / "pipeline").exists()
    invoke(*train)
    report = json.loads((output / "report.json").read_text())
    assert [(row["prompt"], row["seed"]) for row in report["samples"]] == [
        ("bikes", 0),
        ("bikes", 1),
        ("carphone", 0),
        ("carphone", 1),
    ]
    assert (report["steps_done"], report["steps_planned"]) == (4, 4)
    assert len(json.loads((output / "loss.json").read_text())["loss"]) == 4
    weights = output / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors"
    values = train_demo.load_file(weights)
    assert {value.dtype for value in values.values()} == {torch.float16}
    assert (output / "bikes-0.mp4").stat().st_size > 0
    assert (output / "carphone-1.mp4").stat().st_size > 0
    assert not [path for path in output.iterdir() if path.name.startswith(".")]


def test_samples_are_kept_where_no_video_can_be_written(reduced, tmp_path, monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise BackendUnavailableError("writing mp4 needs PyAV: pip install av")

    monkeypatch.setattr(train_demo, "save_video", refuse)
    data, output = tmp_path / "clips.safetensors", tmp_path / "trained"
    invoke("prepare", "--output", str(data), "--clip", "bikes")
    invoke("train", "--data", str(data), "--output", str(output), *OPTIONS)
    assert "`render` writes it" in caplog.text
    samples = train_demo.load_file(output / "samples.safetensors")
    assert samples["bikes-0"].shape == (2, 16, 4, 6)
    assert not torch.equal(samples["bikes-0"], samples["bikes-1"])


def test_stopped_run_leaves_results_and_goes_on(reduced, tmp_path, monkeypatch, caplog):
    def stop_after_three(self, checkpoint, **options):
        while self.step < 3:
            self.train_step(self.batch(self.step))
        self.save(checkpoint)
        return False

    def no_video(*args, **kwargs):
        raise BackendUnavailableError("writing mp4 needs PyAV: pip install av")

    monkeypatch.setattr(train_demo, "save_video", no_video)
    data, output = tmp_path / "clips.safetensors", tmp_path / "trained"
    invoke("prepare", "--output", str(data), "--clip", "bikes")
    train = ["train", "--data", str(data), "--output", str(output), *OPTIONS]
    with monkeypatch.context() as stopped, caplog.at_level("INFO"):
        stopped.setattr(train_demo.Trainer, "run", stop_after_three)
        invoke(*train)
    assert "stopped after 3 of 4 steps" in caplog.text
    report = json.loads((output / "report.json").read_text())
    assert (report["steps_done"], report["steps_planned"]) == (3, 4)
    first = train_demo.load_file(output / "samples.safetensors")
    partial = json.loads((output / "loss.json").read_text())["loss"]
    invoke(*train)
    assert json.loads((output / "report.json").read_text())["steps_done"] == 4
    last = train_demo.load_file(output / "samples.safetensors")
    assert not torch.equal(first["bikes-0"], last["bikes-0"])
    # Writing results changes the weights in memory, not those that training goes on from.
    whole = tmp_path / "whole"
    invoke("train", "--data", str(data), "--output", str(whole), *OPTIONS)
    losses = json.loads((whole / "loss.json").read_text())["loss"]
    assert losses[:3] == partial
    assert json.loads((output / "loss.json").read_text())["loss"] == losses


@pytest.mark.rehearsal
def test_compiled_run(reduced, tmp_path, monkeypatch):
    """With Inductor, as on the GPU, in a whole run; the plain module is what is saved."""
    if shutil.which("g++") is None:
        pytest.skip("Inductor needs g++ on the CPU")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    data = tmp_path / "clips.safetensors"
    invoke("prepare", "--output", str(data), "--clip", "bikes")
    losses, keys = [], []
    for option in ("--compile", "--no-compile"):
        output = tmp_path / option
        # PyAV may be missing; the files asked for here do not need it.
        invoke("train", "--data", str(data), "--output", str(output), *OPTIONS, option)
        losses.append(json.loads((output / "loss.json").read_text())["loss"])
        weights = output / "pipeline" / "transformer" / "diffusion_pytorch_model.safetensors"
        keys.append(sorted(train_demo.load_file(weights)))
    assert keys[0] == keys[1]
    # Other order of float32 sums: 1e-6 in each of 4 steps, enlarged by Adam's division.
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_nothing_to_render(tmp_path):
    with pytest.raises(InvalidInputError, match="finish the run"):
        train_demo.render(tmp_path / "samples.safetensors")
