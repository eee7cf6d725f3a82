"""Reading ONNX files, and refusing the wrong ones before TensorRT starts."""

from __future__ import annotations

from typing import get_args

import onnx
import pytest
from onnx import TensorProto

from helpers.engine_models import write_model
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe
from rainfusion_trt.engine.target import check_graph
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.native import Dtype, NativeLibrary, load_library


@pytest.fixture(scope="module")
def library(plugin_library) -> NativeLibrary:
    return load_library(plugin_library)


def test_facts(tmp_path):
    properties = {"rainfusion.model": "m", "rainfusion.config": '{"a": 1}', "other": "x"}
    file = read_for_build(write_model(tmp_path / "m.onnx", properties=properties))
    assert [tensor.name for tensor in file.inputs] == ["x", "sparsity"]
    assert file.inputs[0].shape == ("batch", 2, 29, 64)
    assert file.inputs[0].dynamic and not file.inputs[1].dynamic
    assert file.inputs[1].dtype == "float32"
    assert file.attention_nodes == ("attn_first", "attn_second")
    assert file.precision == "float16"
    assert file.account.model == "m"
    assert file.account.config == {"a": 1}
    assert file.data_files == ()


def test_external_data(tmp_path):
    path = write_model(tmp_path / "m.onnx", external_data=True)
    assert read_for_build(path).data_files == ("m.onnx.data",)
    data = tmp_path / "m.onnx.data"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=r"m\.onnx\.data has \d+ of \d+ bytes"):
        read_for_build(path)
    data.unlink()
    with pytest.raises(InvalidInputError, match=r"m\.onnx\.data is missing"):
        read_for_build(path)


def test_attribute_removed(tmp_path):
    path = write_model(tmp_path / "m.onnx", plugin_attributes=False)
    with pytest.raises(InvalidInputError, match=r"'attn_first' has plugin_namespace=None"):
        read_for_build(path)


def test_one_of_several_attributes_removed(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    node = model.graph.node[1]
    kept = [attribute for attribute in node.attribute if attribute.name != "plugin_version"]
    del node.attribute[:]
    node.attribute.extend(kept)
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match=r"'attn_second' has plugin_version=None"):
        read_for_build(path)


def test_corrupt_or_missing(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="not a readable ONNX file"):
        read_for_build(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="no graph"):
        read_for_build(path)
    with pytest.raises(InvalidInputError, match=r"no ONNX file at .*nowhere\.onnx"):
        read_for_build(tmp_path / "nowhere.onnx")


def test_no_attention_node(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    model = onnx.load(path)
    for node in model.graph.node:
        node.domain = "" if node.op_type == "MatMul" else "elsewhere"
    onnx.save(model, path)
    with pytest.raises(InvalidInputError, match="no rainfusion::RainFusionAttention node"):
        read_for_build(path)


@pytest.mark.parametrize("head_size", [32, 80, 256])
def test_head_size_without_kernel(tmp_path, library, head_size):
    file = read_for_build(write_model(tmp_path / "m.onnx", head_size=head_size))
    with pytest.raises(UnsupportedError, match=rf"head size {head_size} .* 64, 96, 128"):
        check_graph(library, file)


@pytest.mark.parametrize("head_size", [64, 96, 128])
@pytest.mark.parametrize("dtype", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_head_size_with_kernel(tmp_path, library, head_size, dtype):
    path = write_model(tmp_path / "m.onnx", head_size=head_size, dtype=dtype)
    check_graph(library, read_for_build(path))


def test_head_size_from_the_configuration(tmp_path, library):
    properties = {"rainfusion.config": '{"attention_head_dim": 40}'}
    file = read_for_build(write_model(tmp_path / "m.onnx", properties=properties))
    with pytest.raises(UnsupportedError, match="head size 40"):
        check_graph(library, file)


def test_float32_has_no_kernel(tmp_path, library):
    file = read_for_build(write_model(tmp_path / "m.onnx", dtype=TensorProto.FLOAT))
    with pytest.raises(UnsupportedError, match="is in float32"):
        check_graph(library, file)


def test_recipes_name_the_types_of_the_kernels():
    names = get_args(EngineRecipe.model_fields["precision"].annotation)
    assert names == tuple(name.lower() for name in Dtype.__members__)


def test_count_differs_from_the_exporters(tmp_path):
    properties = {"rainfusion.attention_nodes": "3"}
    with pytest.raises(InvalidInputError, match="holds 2 .* metadata says 3"):
        read_for_build(write_model(tmp_path / "m.onnx", properties=properties))
