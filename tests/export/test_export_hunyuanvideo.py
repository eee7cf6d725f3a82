"""HunyuanVideo's exported graph: padded text, the refiner, sizes, TensorRT."""

from __future__ import annotations

import onnx
import onnxruntime
import pytest
import torch

from helpers.built_engines import built_for_rtx
from rainfusion_trt.models import VideoSize, get_model

MODEL = get_model("hunyuanvideo")
TEXT = 256

# Two float32 programs: the sinusoids of guidance = 6000 differ by 4e-4 where the angles do by one
# unit in the last place, which leaves 4e-5 in the output; a wrong graph is off by more than 1e-2.
TOLERANCE = 1e-4


def relative_error(exported, size: VideoSize, lengths: list[int]) -> float:
    """Largest difference between ONNX Runtime and PyTorch over the largest value."""
    batch = len(lengths)
    inputs = MODEL.example_inputs(exported.transformer, size, batch=batch, seed=size.width)
    mask = torch.arange(TEXT) < torch.tensor(lengths)[:, None]
    inputs["encoder_attention_mask"] = mask.to(torch.int32)
    inputs["timestep"] = torch.arange(0.5, 1000, 1000 / batch)  # another one per element
    with torch.no_grad():
        expected = exported.transformer(**MODEL.forward_kwargs(inputs)).sample
    session = onnxruntime.InferenceSession(exported.path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("length", [TEXT, 93, 1])
def test_fixed_export_equals_pytorch(exported, length):
    fixed = exported("hunyuanvideo", layers=1)
    assert relative_error(fixed, MODEL.tiny_size, [length]) <= TOLERANCE


@pytest.mark.parametrize(
    ("size", "lengths"),
    [(VideoSize(5, 48, 80), [17]), (VideoSize(17, 80, 64), [TEXT, 1, 200])],
    ids=str,
)
def test_dynamic_export_equals_pytorch_at_unseen_sizes(exported, size, lengths):
    dynamic = exported("hunyuanvideo", dynamic=True, layers=1)
    assert relative_error(dynamic, size, lengths) <= TOLERANCE


def test_attention_takes_a_length_in_place_of_the_mask(exported):
    file = exported("hunyuanvideo", torch.bfloat16, layers=1)
    graph = onnx.shape_inference.infer_shapes(onnx.load(file.path)).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.value_info, *graph.input)
    }
    nodes = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert [n.name for n in nodes] == [
        f"{block}.0.attn/RainFusionAttention"
        for block in ("transformer_blocks", "single_transformer_blocks")
    ]
    tokens = 3 * 4 * 6 + TEXT
    for node in nodes:
        assert [shapes[name] for name in node.input] == [
            *[[1, 2, tokens, 64]] * 3,
            [3, 4, 6],
            [1],
            [1],  # kv_len, one number a batch element
        ]
        (text,) = [a.s for a in node.attribute if a.name == "text"]
        assert text == b"last"
    assert not any(shape.count(tokens) > 1 for shape in shapes.values())  # no S x S mask


def test_refiner_of_the_text_keeps_its_attention(exported):
    graph = onnx.load(exported("hunyuanvideo", torch.bfloat16, layers=1).path).graph
    refiners = MODEL.config("tiny")["num_refiner_layers"]
    softmaxes = [n.name for n in graph.node if n.op_type == "Softmax"]
    assert len(softmaxes) == refiners
    assert all(name.startswith("context_embedder.token_refiner") for name in softmaxes)


def test_graph_inputs_are_the_pipelines(exported):
    graph = onnx.load(exported("hunyuanvideo", dynamic=True, layers=1).path).graph
    inputs = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in graph.input
    }
    assert inputs == {
        "hidden_states": ["batch", 4, "frames", "height", "width"],
        "timestep": ["batch"],
        "encoder_hidden_states": ["batch", "text_tokens", 32],
        "encoder_attention_mask": ["batch", "text_tokens"],
        "pooled_projections": ["batch", 16],
        "guidance": ["batch"],
        "sparsity": [1],
    }


@pytest.mark.tensorrt
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(exported, plugin_library, tmp_path):
    file = exported("hunyuanvideo", torch.bfloat16, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model="hunyuanvideo", precision="bfloat16"
    )
    assert built.plugin_layers == 2 and built.model == "hunyuanvideo"
    assert {i.name: i.dtype for i in built.inputs} == {
        "hidden_states": "bfloat16",
        "timestep": "float32",
        "encoder_hidden_states": "bfloat16",
        "encoder_attention_mask": "int32",
        "pooled_projections": "bfloat16",
        "guidance": "float32",
        "sparsity": "float32",
    }
