"""Exported files after another project's optimiser: ONNX Runtime loads them, nothing changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch

from helpers.plain_dit import GRID, PlainDiT, example
from rainfusion_trt.export import export_model, export_module
from rainfusion_trt.graph_file import is_attention
from rainfusion_trt.models import get_model


def plain(path: Path) -> None:
    export_module(PlainDiT().eval(), example(), grid=GRID, output=path)


def with_kv_len(path: Path) -> None:
    """The other body of the function, with a mask."""
    model = get_model("hunyuanvideo")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    export_model(model, transformer, model.tiny_size, output=path)


def outputs(path: Path) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    feed = {
        info.name: generator.standard_normal(info.shape).astype(np.float32)
        if info.type == "tensor(float)"
        else np.ones(info.shape, np.int32)
        for info in session.get_inputs()
    }
    return session.run(None, feed)


@pytest.mark.parametrize("export", [plain, with_kv_len])
def test_slimmed_files_load_and_compute_the_same(tmp_path, export):
    whole, slim = tmp_path / "m.onnx", tmp_path / "slim.onnx"
    export(whole)
    onnxslim.slim(str(whole), str(slim))
    slimmed = onnx.load(slim)
    attentions = [node for node in slimmed.graph.node if is_attention(node)]
    assert attentions and [len(function.input) for function in slimmed.functions] == [
        len(attentions[0].input)
    ]
    for expected, actual in zip(outputs(whole), outputs(slim), strict=True):
        # The same products in another order of the nodes: a few roundings of float32.
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
