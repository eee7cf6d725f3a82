"""Reading ONNX files, and refusing the wrong ones before TensorRT starts."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto

from helpers.engine_models import write_model
from rainfusion_trt.engine.onnx_file import read_onnx
from rainfusion_trt.errors import InvalidInputError, UnsupportedError


def test_facts(tmp_path):
    properties = {"rainfusion.model": "m", "rainfusion.config": '{"a": 1}', "other": "x"}
    file = read_onnx(write_model(tmp_path / "m.onnx", properties=properties))
    assert [tensor.name for tensor in file.inputs] == ["x", "sparsity"]
    assert file.inputs[0].shape == ("batch", 2, 29, 64)
    assert file.inputs[0].dynamic and not file.inputs[1].dynamic
    assert file.inputs[1].dtype == "float32"
    assert file.attention_nodes == ("attn_first", "attn_second")
    assert file.precision == "float16"
    assert file.model == "m"
    assert file.json_property("config") == {"a": 1}
    assert file.data_files == ()


def test_external_data(tmp_path):
    path = write_model(tmp_path / "m.onnx", external_data=True)
    assert read_onnx(path).data_files == ("m.onnx.data",)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=r"m\.onnx\.data has \d+ of \d+ bytes"):
        read_onnx(path)
    data.unlink()
    with pytest.raises(InvalidInputError, match=r"m\.onnx\.data is missing"):
        read_onnx(path)


def test_attribute_removed(tmp_path):
    path = write_model(tmp_path / "m.onnx", plugin_attributes=False)
    with pytest.raises(InvalidInputError, match=r"'attn_first' has plugin_namespace=None"):
        read_onnx(path)


def test_one_of_several_attributes_removed(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    node = model.graph.node[1]
    kept = [attribute for attribute in node.attribute if attribute.name != "plugin_version"]
    del node.attribute[:]
    node.attribute.extend(kept)
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match=r"'attn_second' has plugin_version=None"):
        read_onnx(path)


def test_corrupt_or_missing(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="not a readable ONNX file"):
        read_onnx(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="no graph"):
        read_onnx(path)
    with pytest.raises(InvalidInputError, match=r"no ONNX file at .*nowhere\.onnx"):
        read_onnx(tmp_path / "nowhere.onnx")


def test_no_attention_node(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.domain = "" if node.op_type == "MatMul" else "elsewhere"
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match="no rainfusion::RainFusionAttention node"):
        read_onnx(path)


@pytest.mark.parametrize("head_size", [32, 80, 256])
def test_head_size_without_kernel(tmp_path, head_size):
    with pytest.raises(UnsupportedError, match=rf"head size {head_size} .* 64, 96, 128"):
        read_onnx(write_model(tmp_path / "m.onnx", head_size=head_size))


def test_head_size_from_the_configuration(tmp_path):
    properties = {"rainfusion.config": '{"attention_head_dim": 40}'}
    with pytest.raises(UnsupportedError, match="head size 40"):
        read_onnx(write_model(tmp_path / "m.onnx", properties=properties))


def test_float32_has_no_kernel(tmp_path):
    with pytest.raises(UnsupportedError, match="is in float32"):
        read_onnx(write_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT))


def test_count_differs_from_the_exporters(tmp_path):
    properties = {"rainfusion.attention_nodes": "3"}
    with pytest.raises(InvalidInputError, match="holds 2 .* metadata says 3"):
        read_onnx(write_model(tmp_path / "m.onnx", properties=properties))
