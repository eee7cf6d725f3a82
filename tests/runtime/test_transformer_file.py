"""A checkpoint's folder, and its transformer of another file."""

from __future__ import annotations

import functools

import pytest
import torch
from typer.testing import CliRunner

import rainfusion_trt
from helpers.wan_authors import MODEL, authors, write
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.errors import InvalidInputError, UnsupportedError

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(
    rainfusion_trt.Pipeline, MODEL.name, device="cpu", backend="torch", dtype=torch.float32
)
CALL = {
    "prompt_embeds": torch.randn(1, 512, 32, generator=torch.Generator().manual_seed(0)),
    "num_frames": 9,
    "height": 64,
    "width": 96,
    "num_inference_steps": 1,
    "guidance_scale": 1.0,
    "output_type": "latent",
    "sparsity": 0.0,
    "seed": 0,
}


def transformer(seed: int):
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=seed)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_pipeline(transformer(1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tmp_path_factory.mktemp("file"), authors(transformer(2).state_dict()))


def frames(**source) -> torch.Tensor:
    with Pipeline(**source) as pipeline:
        return pipeline(**CALL).frames


def test_its_weights_take_the_place_of_the_folders(checkpoint, file):
    of_folder = frames(checkpoint=checkpoint)
    of_file = frames(checkpoint=checkpoint, transformer=file)
    wanted = frames(pipe=tiny_pipeline(transformer(2)))
    assert torch.equal(of_file, wanted) and not torch.equal(of_file, of_folder)
    assert torch.equal(frames(checkpoint=checkpoint, transformer={"transformer": file}), wanted)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"transformer": "/no.gguf"}, InvalidInputError, "transformer= names /no.gguf .* no such"),
        ({"transformer": __file__}, UnsupportedError, "is no .safetensors or .gguf file"),
        ({"transformer": {"unet": "a"}}, InvalidInputError, "transformer= names 'unet'"),
        ({"transformer": {"transformer_2": __file__}}, InvalidInputError, "has one transformer"),
        ({"onnx": "a", "transformer": __file__}, InvalidInputError, "is for the torch backend"),
    ],
)
def test_what_is_refused_before_anything_is_loaded(checkpoint, monkeypatch, options, error, words):
    monkeypatch.setattr("rainfusion_trt.runtime.loading.pipe_of_checkpoint", None)
    with pytest.raises(error, match=words):
        Pipeline(checkpoint=checkpoint, **options)


def test_a_pipeline_has_a_transformer():
    with pytest.raises(InvalidInputError, match="pipe= has a transformer"):
        Pipeline(pipe=tiny_pipeline(transformer(1)), transformer=__file__)


def test_the_command_has_it(checkpoint, tmp_path):
    arguments = ("--prompt", "x", "--checkpoint", str(checkpoint), "--model", MODEL.name)
    target = ("--output", str(tmp_path / "x.mp4"), "--transformer", "/no.gguf")
    result = CliRunner().invoke(app, ["run", *arguments, *target])
    assert result.exit_code == 2 and "transformer= names /no.gguf" in result.stderr
