"""HunyuanVideo-1.5's exported graph: no branch, no S x S mask, text of two encoders, TensorRT."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from helpers.built_engines import built_for_rtx
from rainfusion_trt.models import VideoSize, get_model

MODEL = get_model("hunyuanvideo-1.5")
TEXT = 1000 + 256 + 729

# Two float32 programs that order sums differently; a wrong graph is off by more than 1e-2.
TOLERANCE = 1e-4


@pytest.mark.parametrize(
    ("size", "lengths", "lengths_2"),
    [
        (VideoSize(9, 64, 96), [250], [0]),
        (VideoSize(5, 80, 48), [1000], [256]),
        (VideoSize(17, 96, 64), [1, 300, 77], [20, 0, 256]),
    ],
    ids=str,
)
def test_dynamic_export_equals_pytorch(exported, size, lengths, lengths_2):
    """Against diffusers' own forward, at unseen sizes."""
    dynamic = exported("hunyuanvideo-1.5", dynamic=True, layers=1)
    inputs = MODEL.example_inputs(dynamic.transformer, size, batch=len(lengths), seed=size.width)
    for end, valid in (("", lengths), ("_2", lengths_2)):
        mask = inputs[f"encoder_attention_mask{end}"]
        mask.copy_(torch.arange(mask.shape[1]) < torch.tensor(valid)[:, None])
    with torch.no_grad():
        expected = dynamic.transformer(**MODEL.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(dynamic.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    error = (torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()
    assert error <= TOLERANCE


def test_attention_takes_a_length_in_place_of_the_mask(exported):
    file = exported("hunyuanvideo-1.5", torch.bfloat16, layers=1)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file.path)).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input)
    }
    (node,) = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert node.name == "transformer_blocks.0.attn/RainFusionAttention"
    grid = [3, 4, 6]
    tokens = 3 * 4 * 6 + TEXT
    assert [shapes[name] for name in node.input] == [*[[1, 2, tokens, 64]] * 3, grid, [1], [1]]
    assert not any(shape.count(tokens) > 1 for shape in shapes.values())  # no S x S mask
    softmaxes = [n.name for n in graph.node if n.op_type == "Softmax"]
    assert len(softmaxes) == 1 and softmaxes[0].startswith("context_embedder.token_refiner")
    assert "image_embeds" not in {value.name for value in graph.input}


@pytest.mark.tensorrt
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(exported, plugin_library, tmp_path):
    file = exported("hunyuanvideo-1.5", torch.bfloat16, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model="hunyuanvideo-1.5", precision="bfloat16"
    )
    assert built.plugin_layers == 1
