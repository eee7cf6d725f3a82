"""Checkpoints of one file on the exporter's command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from helpers.wan_authors import MODEL, authors, write
from rainfusion_trt.export.cli import app
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.weights_hash import weights_hash


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)


def call(checkpoint: Path, output: Path, *more: str):
    size = ["--frames", "9", "--height", "64", "--width", "96", "--dtype", "fp32"]
    arguments = ["--model", MODEL.name, "--checkpoint", checkpoint, *size, "--output", output]
    return CliRunner().invoke(app, [*map(str, arguments), *more])


def test_a_file_is_exported_as_the_folder_would_be(transformer, tmp_path):
    path = write(tmp_path, authors(transformer.state_dict(), "model.diffusion_model."))
    result = call(path, tmp_path / "out" / "wan.onnx", "--compare")
    assert result.exit_code == 0, result.output
    account = read_onnx(tmp_path / "out" / "wan.onnx").account
    assert account.weights_sha256 == weights_hash(transformer)
    assert account.attention_nodes == 1


def lora(path: Path) -> Path:
    return write(path.parent, {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": torch.ones(2)})


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def another_model(path: Path) -> Path:
    tensors = load_file(path)
    tensors["patch_embedding.weight"] = torch.ones(256, 36, 1, 2, 2)  # image to video
    return write(path.parent, tensors)


def pickled(path: Path) -> Path:
    return Path(shutil.copy(path, path.with_suffix(".ckpt")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lora, "is a LoRA"),
        (truncated, "cannot be read"),
        (another_model, "patch_embedding.weight has shape (256, 36, 1, 2, 2)"),
        (pickled, "pickled ones can run code"),
        (lambda path: path.with_name("gone.safetensors"), "neither a directory, a file"),
    ],
)
def test_what_is_refused_leaves_nothing(transformer, tmp_path, monkeypatch, change, message):
    path = change(write(tmp_path, authors(transformer.state_dict())))
    before = sorted(tmp_path.rglob("*"))
    result = call(path, tmp_path / "out" / "wan.onnx")
    assert result.exit_code == 2 and message in " ".join(result.output.split())
    assert sorted(tmp_path.rglob("*")) == before
    # A relative name of one slash is no repository of the hub, if it ends as a file does.
    monkeypatch.chdir(tmp_path)
    relative = call(Path("folder") / path.with_name("gone.safetensors").name, Path("wan.onnx"))
    assert relative.exit_code == 2 and "neither a directory, a file" in " ".join(
        relative.output.split()
    )
