"""Whatever a checkpoint holds: its own weights are loaded, or it is refused in one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from helpers.fuzzing import bounded, damaged_bytes, damaged_json, nothing_written, refused_or_fine
from rainfusion_trt.console import explain
from rainfusion_trt.export.lora import fuse_loras
from rainfusion_trt.export.lora_file import LoraFile
from rainfusion_trt.export.module_state import check_finite
from rainfusion_trt.models import get_model

MODEL = get_model("wan2.1-1.3b")
WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.float8_e4m3fn, torch.bool)


@pytest.fixture(scope="module", autouse=True)
def quick(one_thread):
    """Tiny tensors."""


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)
    transformer.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original, tmp_path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(original, folder)
    return folder


def load(folder: Path):
    """The transformer, if it was not refused and an export would not refuse it; else None."""

    def call():
        try:
            loaded = MODEL.load(str(folder), dtype=torch.float32)
            check_finite(loaded)
            return loaded
        except Exception as error:  # diffusers' own refusals are told at the border
            if explain(error) is None:
                raise
            return None

    with nothing_written(folder):
        loaded = refused_or_fine(call)
    if loaded is not None:
        assert all(p.isfinite().all() for p in loaded.parameters())
        assert all(p.device.type == "cpu" for p in loaded.parameters())
    return loaded


def test_the_intact_one_is_loaded(folder):
    stored, loaded = load_file(folder / WEIGHTS), load(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


@bounded(15)
@given(data=st.data())
def test_any_damage_of_the_weights(folder, original, data):
    """In the header, where a byte matters; in the values one bit is another number."""
    content = (original / WEIGHTS).read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    damaged = data.draw(damaged_bytes(content[:header]))
    (folder / WEIGHTS).write_bytes(damaged + content[header:])
    load(folder)


@bounded(15)
@given(data=st.data())
def test_tensors_missing_left_over_and_of_another_kind(folder, original, data):
    tensors = load_file(original / WEIGHTS)
    intact = dict(tensors)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(tensors)))
        kind = data.draw(st.sampled_from(["drop", "rename", "add", "dtype", "shape", "values"]))
        if kind == "drop":
            del tensors[name]
        elif kind == "rename":
            ending = data.draw(st.sampled_from([".weight_scale", ".qweight", ".lora_A", "x", ""]))
            tensors[name.rpartition(".")[0] + ending] = tensors.pop(name)
        elif kind == "add":
            tensors[data.draw(st.text(st.characters(codec="ascii"), min_size=1))] = torch.ones(3)
        elif kind == "dtype":
            tensors[name] = tensors[name].to(data.draw(st.sampled_from(DTYPES)))
        elif kind == "shape":
            tensors[name] = tensors[name].flatten()[: data.draw(st.integers(0, 5))].clone()
        elif tensors[name].numel():
            value = data.draw(st.sampled_from([float("nan"), float("inf"), float("-inf")]))
            tensors[name] = tensors[name].float()
            tensors[name].view(-1)[-1] = value
    (folder / WEIGHTS).write_bytes(save(tensors))
    loaded = load(folder)
    if loaded is not None:  # then nothing was lost or made up
        state = loaded.state_dict()
        assert set(state) == set(intact)
        for name, tensor in state.items():
            assert torch.equal(tensor, tensors[name].float()), name


@bounded(15)
@given(data=st.data())
def test_any_configuration(folder, original, data):
    content = json.loads((original / "config.json").read_bytes())
    kind = data.draw(st.booleans())
    if kind:
        text = json.dumps(data.draw(damaged_json(content))).encode()
    else:
        text = data.draw(damaged_bytes((original / "config.json").read_bytes()))
    (folder / "config.json").write_bytes(text)
    load(folder)


@bounded(15)
@given(data=st.data())
def test_any_lora(original, tmp_path, data):
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    layers = ["blocks.0.attn1.to_q", "blocks.0.attn2.to_out.0", "blocks.0.ffn.net.2", "nowhere"]
    tensors = {}
    for layer in data.draw(st.lists(st.sampled_from(layers), min_size=1, unique=True)):
        prefix = data.draw(st.sampled_from(["transformer.", "diffusion_model.", "lora_unet_", ""]))
        names = data.draw(
            st.sampled_from(
                [("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight"), ("x",)]
            )
        )
        rows = data.draw(st.sampled_from([4, 64, 128]))
        shapes = [(4, rows), (rows, 4)]
        for name, shape in zip(names, shapes, strict=False):
            dtype = data.draw(st.sampled_from(DTYPES))
            tensors[f"{prefix}{layer}.{name}"] = torch.full(
                shape, data.draw(st.sampled_from([0.0, 1.0, float("nan")]))
            ).to(dtype)
    file = tmp_path / "lora.safetensors"
    save_file(tensors, file)
    if data.draw(st.integers(0, 4)) == 0:
        file.write_bytes(data.draw(damaged_bytes(file.read_bytes())))
    with nothing_written(tmp_path):
        fused = refused_or_fine(lambda: fuse_loras(MODEL, transformer, (LoraFile(file),)) or True)
    after = transformer.state_dict()
    if fused is None:
        assert all(torch.equal(after[name], value) for name, value in before.items())
    else:
        assert all(value.isfinite().all() for value in after.values())
