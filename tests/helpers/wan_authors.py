"""A Wan checkpoint of one file, by the names of its authors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rainfusion_trt.models import get_model

MODEL = get_model("wan2.1-1.3b")

# diffusers' names of Wan -> its authors', by hand and independent of diffusers' converter.
AUTHORS = (
    (".attn1.to_out.0.", ".self_attn.o."),
    (".attn2.to_out.0.", ".cross_attn.o."),
    (".attn1.norm_", ".self_attn.norm_"),
    (".attn2.norm_", ".cross_attn.norm_"),
    (".attn1.to_", ".self_attn."),
    (".attn2.to_", ".cross_attn."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".norm2.", ".norm3."),
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj.", "time_projection.1."),
    ("proj_out.", "head.head."),
)


def authors_name(name: str) -> str:
    for old, new in AUTHORS:
        name = name.replace(old, new)
    if name.endswith("scale_shift_table"):
        return name.replace("scale_shift_table", "modulation" if "." in name else "head.modulation")
    return name


def authors(tensors: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + authors_name(name): t.clone() for name, t in tensors.items()}


def write(folder: Path, tensors: dict[str, Tensor], name: str = "wan_t2v.safetensors", **header):
    """Beside a configuration of diffusers', as the tiny model is in no registry."""
    config = {"_class_name": "WanTransformer3DModel", **MODEL.config("tiny", layers=1)}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / name, header or None)
    return folder / name


def load(path: Path, dtype=torch.float32, model=MODEL, **options):
    return model.load(str(path), dtype=dtype, **options)


def refused(path: Path, error, match: str, **options) -> str:
    before = sorted(path.parent.iterdir())
    with pytest.raises(error, match=match) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    assert sorted(path.parent.iterdir()) == before
    return str(caught.value)


def same(actual, expected: dict[str, Tensor]) -> None:
    found = actual.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def mark(**said) -> Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)
