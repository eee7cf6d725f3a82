"""Graphs of 8 bits: an attribute, and an input whose length is the precision of a call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from helpers.plain_dit import GRID, PlainDiT, example
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model, export_module
from rainfusion_trt.export.operator import EIGHT_BIT, PARALLEL, PLUGIN_ATTRIBUTES
from rainfusion_trt.export.step_precision import attention_of_bits
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import NODE_ATTRIBUTES, AttentionSettings

SETTINGS = AttentionSettings(precision="8bit")


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A module with padding, so that its nodes have every input."""
    path = tmp_path_factory.mktemp("precision") / "m.onnx"
    torch.manual_seed(0)
    inputs = {**example(), "valid": torch.full((2,), 70, dtype=torch.int32)}
    export_module(
        PlainDiT().eval(), inputs, grid=GRID, kv_len="valid", output=path, settings=SETTINGS
    )
    return path


def test_what_the_file_says(path):
    file = read_onnx(path)
    assert file.account.settings == SETTINGS and not file.account.dynamic
    assert file.has_bits and read_for_build(path).eight_bit
    assert next(t for t in file.inputs if t.name == "bits").shape == ("precision_bits",)
    for node in file.attentions:
        names = {attribute.name for attribute in node.attribute}
        assert names == {*NODE_ATTRIBUTES, *PLUGIN_ATTRIBUTES, *EIGHT_BIT}
        assert len(node.input) == 7 and node.input[-1] == "bits"
    (body,) = file.proto.functions
    assert list(body.input)[-2:] == ["kv_len", "bits"]


def test_the_body_is_the_same_whatever_the_bits(path):
    """Dense and in its own element type: ONNX Runtime has no other."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in example().items()}
    feed |= {"valid": np.full(2, 70, np.int32), "sparsity": np.zeros(1, np.float32)}
    found = [session.run(None, {**feed, "bits": np.zeros(n, np.float32)})[0] for n in (8, 16)]
    assert np.array_equal(*found)


def test_of_several_gpus_too(tmp_path):
    model = get_model("wan2.1-14b")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float16)
    path = tmp_path / "m.onnx"
    export_model(model, transformer, model.tiny_size, output=path, parallel=True, settings=SETTINGS)
    (node,) = read_onnx(path).attentions
    assert {*PARALLEL, *EIGHT_BIT} < {attribute.name for attribute in node.attribute}
    assert [t.name for t in read_for_build(path).inputs][-3:] == ["part", "bits", "sparsity"]


def test_a_graph_of_16_bits_has_none_of_it(exported):
    file = read_onnx(exported("wan2.1-1.3b", layers=1).path)
    assert not file.has_bits
    assert "precision" not in {a.name for n in file.attentions for a in n.attribute}
    assert "precision" not in {a.name for f in file.proto.functions for a in f.attribute_proto}
    assert all("precision" not in entry.value for entry in file.proto.metadata_props)


def test_what_has_no_8_bits_is_refused_before_work_starts(tmp_path):
    model = get_model("allegro")  # of head size 96
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    with pytest.raises(UnsupportedError, match="no kernel for head size 96, only for 64 and 128"):
        export_model(
            model, transformer, model.tiny_size, output=tmp_path / "m.onnx", settings=SETTINGS
        )
    assert not list(tmp_path.iterdir())


def test_the_name_of_the_input_is_taken(tmp_path):
    class Own(PlainDiT):
        def forward(self, latents, text, bits):
            return super().forward(latents, text) + bits.sum()

    inputs = {**example(), "bits": torch.zeros(3)}
    with pytest.raises(InvalidInputError, match="'bits' has the name of an input of every graph"):
        export_module(
            Own().eval(), inputs, grid=GRID, output=tmp_path / "m.onnx", settings=SETTINGS
        )


def test_in_pytorch_the_length_is_the_precision():
    q, k, v = torch.randn(3, 1, 2, 3 * 4 * 6, 64).unbind(0)
    grid, sparsity = torch.empty(1).expand(3, 4, 6), torch.zeros(1)
    for bits, precision in ((8, "8bit"), (16, "16bit")):
        found = attention_of_bits(
            q,
            k,
            v,
            grid,
            bits=torch.zeros(bits),
            parallel=False,
            sparsity=sparsity,
            **SETTINGS.attributes(),
        )
        wanted = rainfusion_attention(q, k, v, grid, sparsity=0.0, precision=precision)
        assert torch.equal(found, wanted)
    with pytest.raises(InvalidInputError, match="bits is 7 long; it must be 8 or 16"):
        torch.ops.rainfusion.attention_of_bits(
            *(q, k, v, grid, sparsity, None), *SETTINGS.flat(), torch.zeros(7), False
        )


def change(path: Path, tmp_path: Path, how) -> Path:
    model = onnx.load(path)
    how(model)
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


def without_attribute(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "RainFusionAttention")
    node.attribute.remove(next(a for a in node.attribute if a.name == "precision"))


def without_input(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "RainFusionAttention":
            del node.input[-1]


def another_input(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "RainFusionAttention")
    node.input[-1] = "sparsity"


def another_value(model: onnx.ModelProto) -> None:
    node = next(n for n in model.graph.node if n.op_type == "RainFusionAttention")
    next(a for a in node.attribute if a.name == "precision").s = b"4bit"


def another_account(model: onnx.ModelProto) -> None:
    entry = next(e for e in model.metadata_props if e.key == "rainfusion.settings")
    entry.value = entry.value.replace('"precision": "8bit", ', "")
    assert "precision" not in entry.value


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (without_attribute, "has 7 inputs and 1 outputs, RainFusionAttention takes 5 or 6"),
        (another_input, "takes 'sparsity' in the place of the graph's input 'bits'"),
        (without_input, "takes 'valid|takes '.*' in the place of the graph's input 'bits'"),
        (another_value, "precision='4bit' is not one of 16bit, 8bit"),
        (another_account, "is of 8 bits in a part of its nodes, its inputs and its metadata alone"),
    ],
)
def test_a_file_that_is_of_8_bits_in_part_is_refused(path, tmp_path, how, words):
    with pytest.raises(InvalidInputError, match=words) as raised:
        read_for_build(change(path, tmp_path, how))
    assert "\n" not in str(raised.value)
