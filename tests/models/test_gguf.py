"""Checkpoints in GGUF, against multiplications by hand from the blocks' bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.required import aside
from helpers.wan_authors import MODEL, authors
from rainfusion_trt.errors import InvalidInputError, UnsupportedError

Q = "blocks.0.self_attn.q.weight"


@pytest.fixture(scope="module")
def gguf():
    try:
        import gguf
    except ImportError:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(aside("quantisers"))
            yield __import__("gguf")
    else:
        yield gguf


@pytest.fixture(scope="module")
def original():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)


class File:
    """A GGUF file in the making: its tensors, as arrays or as bytes of a format."""

    def __init__(self, gguf, original, path: Path) -> None:
        self.gguf, self.path = gguf, path
        self.plain = {
            name: tensor.numpy() for name, tensor in authors(original.state_dict()).items()
        }
        self.blocks: dict[str, tuple] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        config = {"_class_name": "WanTransformer3DModel", **MODEL.config("tiny", layers=1)}
        (path.parent / "config.json").write_text(json.dumps(config))

    def quantise(self, name: str, kind: str, blocks: np.ndarray) -> None:
        self.blocks[name] = blocks, self.gguf.GGMLQuantizationType[kind]
        del self.plain[name]

    def write(self) -> Path:
        writer = self.gguf.GGUFWriter(self.path, "wan")
        for name, shape in self.shapes.items():
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
        for name, values in self.plain.items():
            writer.add_tensor(name, values)
        for name, (blocks, kind) in self.blocks.items():
            writer.add_tensor(name, blocks, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return self.path


@pytest.fixture
def file(gguf, original, tmp_path):
    return File(gguf, original, tmp_path / "wan2.1-t2v-Q8_0.gguf")


def load(path: Path, dtype=torch.float32):
    return MODEL.load(str(path), dtype=dtype)


def blocks_q8_0(generator) -> tuple[np.ndarray, np.ndarray]:
    """Bytes of a [256, 256] weight, and its values: a float16 scale and 32 signed bytes a block."""
    scales = generator.random((256, 8, 1), np.float32).astype(np.float16) / 100
    codes = generator.integers(-127, 128, (256, 8, 32), np.int8)
    data = np.concatenate([scales.view(np.uint8), codes.view(np.uint8)], axis=2)
    return data.reshape(256, -1), (scales.astype(np.float32) * codes).reshape(256, 256)


def blocks_q4_0(generator) -> tuple[np.ndarray, np.ndarray]:
    """A float16 scale and 32 half bytes, less 8: the first 16 low, the others high."""
    scales = generator.random((256, 8, 1), np.float32).astype(np.float16) / 10
    codes = generator.integers(0, 256, (256, 8, 16), np.uint8)
    values = np.concatenate([codes & 15, codes >> 4], axis=2).astype(np.float32) - 8
    data = np.concatenate([scales.view(np.uint8), codes], axis=2)
    return data.reshape(256, -1), (scales.astype(np.float32) * values).reshape(256, 256)


def blocks_q4_k(generator) -> tuple[np.ndarray, np.ndarray]:
    """256 weights a block: two float16 factors, eight scales and minima of 6 bits, half bytes."""
    factors = generator.random((256, 2), np.float32).astype(np.float16) / 100
    scales, minima = generator.integers(0, 64, (2, 256, 8), np.uint8)
    codes = generator.integers(0, 16, (256, 8, 32), np.uint8)
    packed = np.concatenate(
        [
            (scales[:, :4] | (scales[:, 4:] >> 4 << 6)),
            (minima[:, :4] | (minima[:, 4:] >> 4 << 6)),
            (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4,
        ],
        axis=1,
    )
    halves = codes[:, 0::2] | codes[:, 1::2] << 4  # groups 0 and 1, 2 and 3, ... share 32 bytes
    data = np.concatenate([factors.view(np.uint8), packed, halves.reshape(256, -1)], axis=1)
    by = factors.astype(np.float32)[..., None]
    values = by[:, :1] * scales[..., None] * codes - by[:, 1:] * minima[..., None]
    return data, values.reshape(256, 256)


def blocks_bf16(generator) -> tuple[np.ndarray, np.ndarray]:
    values = generator.standard_normal((256, 256), np.float32)
    values = (values.view(np.uint32) >> 16 << 16).view(np.float32)
    return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8), values


KINDS = {"Q8_0": blocks_q8_0, "Q4_0": blocks_q4_0, "Q4_K": blocks_q4_k, "BF16": blocks_bf16}


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_multiplied_out(file, original, kind):
    data, expected = KINDS[kind](np.random.default_rng(3))
    file.quantise(Q, kind, data)
    loaded = load(file.write()).state_dict()
    # Products of a few float32; diffusers' own, in float16, are 1e-3 off.
    error = np.abs(loaded["blocks.0.attn1.to_q.weight"].numpy() - expected).max()
    assert error <= 1e-6 * np.abs(expected).max()
    for name, tensor in original.state_dict().items():
        assert name == "blocks.0.attn1.to_q.weight" or torch.equal(loaded[name], tensor), name


def test_halves_five_axes_and_float32_modules(file, original):
    """A patch embedding that was folded into four axes, as its real shape is noted beside it."""
    name = "patch_embedding.weight"
    file.shapes[name] = file.plain[name].shape
    file.plain[name] = file.plain[name].reshape(256 * 16, 1, 2, 2).astype(np.float16)
    loaded = load(file.write(), torch.bfloat16)
    expected = original.patch_embedding.weight.half().bfloat16()
    assert torch.equal(loaded.patch_embedding.weight, expected)
    assert loaded.scale_shift_table.dtype is torch.float32
    assert torch.equal(loaded.scale_shift_table, original.scale_shift_table)


def test_refused_in_one_line(file, gguf):
    path = file.write()

    def one_line(error, match: str) -> None:
        with pytest.raises(error, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value) and path.name in str(caught.value)

    content = path.read_bytes()
    for length in (0, 4, 500, len(content) - 100):
        path.write_bytes(content[:length])
        one_line(InvalidInputError, "cannot be read .*download it again")
    del file.plain[Q]
    file.write()
    one_line(InvalidInputError, r"lack blocks\.0\.attn1\.to_q\.weight")
    file.plain[Q] = np.ones((256, 256), np.int8)
    file.write()
    one_line(UnsupportedError, r"to_q|self_attn\.q\.weight is I8, which is no format")
    file.plain = {"lora_unet_x.lora_down.weight": np.ones((2, 2), np.float32)}
    file.write()
    one_line(InvalidInputError, "is a LoRA")


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    path = tmp_path / "wan.gguf"
    path.touch()
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InvalidInputError, match=r"the package gguf reads.*rainfusion-trt\[gguf\]"):
        load(path)
