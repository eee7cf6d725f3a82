"""A grid that comes from numbers: one graph of packed tokens for clips of many sizes."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch

from helpers.packed_model import Packed, PackedTransformer
from rainfusion_trt import disable, enable
from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.shapes import clip_shapes
from rainfusion_trt.export import export_model
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.models import VideoSize

MODEL = Packed()


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    return PackedTransformer().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def file(transformer, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "packed.onnx"
    export_model(MODEL, transformer, MODEL.defaults.size, output=path, dynamic=True)
    return path


def test_the_file_names_the_grid(file):
    """And torch.export sees that the tokens are a product, so that their axis has no own name."""
    shapes = {tensor.name: tensor.shape for tensor in read_onnx(file).inputs}
    assert shapes == {
        "hidden_states": ("batch", "grid_frames*grid_height*grid_width", 8),
        "timestep": ("batch",),
        "grid": ("grid_frames", "grid_height", "grid_width"),
        "sparsity": (1,),
    }


@pytest.mark.parametrize("size", [(25, 96, 128), (9, 64, 192), (49, 128, 64)], ids=str)
def test_one_graph_serves_many_sizes(transformer, file, size):
    size = VideoSize(*size)
    inputs = MODEL.example_inputs(transformer, size, batch=3, seed=size.width)
    call = MODEL.forward_kwargs(inputs)
    assert [call[name] for name in ("num_frames", "height", "width")] == [
        (size.frames - 1) // 8 + 1,
        size.height // 32,
        size.width // 32,
    ]
    assert all(torch.equal(inputs[n], t) for n, t in MODEL.graph_inputs(call).items())
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    torch.testing.assert_close(torch.from_numpy(actual), transformer(**call)[0])
    account = OnnxFile(file, (), read_onnx(file).inputs, (), (), ())
    shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
    assert clip_shapes(MODEL, account, size, 3) == shapes


def test_enable_reads_the_numbers(transformer):
    call = MODEL.forward_kwargs(MODEL.example_inputs(transformer, VideoSize(25, 256, 256), batch=1))
    dense = transformer(**call)[0]
    routing = enable(transformer, sparsity=0.0, model=MODEL, method="rainfusion")
    try:
        torch.testing.assert_close(transformer(**call)[0], dense)
        routing.sparsity = 0.5
        assert not torch.allclose(transformer(**call)[0], dense, atol=1e-3)
        assert routing.routed == 1
    finally:
        disable(transformer)
