"""ONNX files that say what they must not: one line before TensorRT starts, and the cause alone."""

from __future__ import annotations

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.engine_models import PROFILE, TOKENS, write_model
from rainfusion_trt.engine import build_engine, load_recipe
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.errors import EngineBuildError, InvalidInputError

needs_rtx = pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
)
VIDEO = 2 * 3 * 4


@pytest.fixture
def model(tmp_path) -> onnx.ModelProto:
    return onnx.load(write_model(tmp_path / "m.onnx"))


def refusal(model: onnx.ModelProto, tmp_path) -> str:
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    with pytest.raises(InvalidInputError) as error:
        read_for_build(path)
    line = str(error.value)
    assert line.startswith(str(path)) and "\n" not in line and line.isprintable()
    return line


def attribute(model, name: str, value=None, node: int = 0) -> None:
    """Give a node's attribute another value; None takes it away."""
    attributes = model.graph.node[node].attribute
    kept = [a for a in attributes if a.name != name]
    del attributes[:]
    attributes.extend(kept)
    if value is not None:
        attributes.append(helper.make_attribute(name, value))


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("sink_frames", -(2**63), "sink_frames=-9223372036854775808 must be 0 or more"),
        ("sink_frames", -1, "sink_frames=-1 must be 0 or more"),
        ("sink_frames", 2**31, "sink_frames=2147483648 must be below"),
        ("sink_frames", 2**62, "must be below"),
        ("sink_frames", 1.0, "sink_frames of type FLOAT instead of INT"),
        ("exact_frames", 1, "exact_frames of type INT instead of INTS"),
        ("exact_frames", [0, 1, 1], "exact_frames=[0, 1, 1] has 3 numbers"),
        ("exact_frames", [1, 1], "exact_frames has (1, 1): latent frames count from 0"),
        ("alpha", 1, "alpha of type INT instead of FLOAT"),
        ("alpha", 1.5, r"alpha=1.5 must be in [0, 1]"),
        ("alpha", float("nan"), "alpha=nan must be in"),
        ("scale", float("inf"), "scale=inf must be positive"),
        ("scale", -1.0, "scale=-1.0 must be positive"),
        ("method", "sora", "method='sora' is not one of rainfusion"),
        ("method", b"\xff\xfe", "is not one of rainfusion"),
        ("text", "left", "text='left' is not one of none, first, last"),
        ("text", ["first"], "text of type STRINGS instead of STRING"),
        ("text", "none", f"of {TOKENS} tokens holds more than the grid 2x3x4, but text is 'none'"),
        ("plugin_version", "2", "plugin_version='2' instead of '1'"),
    ],
)
def test_attributes_that_cannot_be(model, tmp_path, name, value, words):
    attribute(model, name, value)
    line = refusal(model, tmp_path)
    assert "node 'attn_first'" in line and words in line


def test_exact_frames_that_the_grid_lacks(model, tmp_path):
    attribute(model, "method", "piecewise")
    attribute(model, "exact_frames", [1, 2])
    onnx.save(model, tmp_path / "m.onnx")
    read_for_build(tmp_path / "m.onnx")
    attribute(model, "exact_frames", [1, 3])
    line = refusal(model, tmp_path)
    assert "'attn_first': exact_frames=((1, 3),) names latent frame 2, and the clip has 2" in line


@pytest.mark.parametrize("name", ["text", "method", "alpha", "sink_frames"])
def test_a_missing_attribute_is_no_default(model, tmp_path, name):
    attribute(model, name, node=1)
    assert f"node 'attn_second' lacks {name}" in refusal(model, tmp_path)


def test_a_missing_scale_is_that_of_the_head_size(model, tmp_path):
    assert all(a.name != "scale" for a in model.graph.node[0].attribute)
    read_for_build(tmp_path / "m.onnx")


def resized(model, tokens: int) -> None:
    """Another length of the sequence; the grid stays."""
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.shape.dim[2].dim_value = tokens


@pytest.mark.parametrize("text", ["first", "last"])
def test_text_without_text_tokens(model, tmp_path, text):
    attribute(model, "text", text)
    resized(model, VIDEO)
    assert f"holds only the grid 2x3x4, but text is {text!r}" in refusal(model, tmp_path)


def test_a_sequence_shorter_than_its_grid(model, tmp_path):
    resized(model, VIDEO - 1)
    assert "of 23 tokens cannot hold the grid 2x3x4" in refusal(model, tmp_path)


@pytest.mark.parametrize(("domain", "version"), [("", 99), ("", 0), ("rainfusion", 2)])
def test_versions_that_nobody_knows(model, tmp_path, domain, version):
    for opset in model.opset_import:
        if opset.domain == domain:
            opset.version = version
    assert f"version {version} of the operators of" in refusal(model, tmp_path)


def test_operators_without_a_version(model, tmp_path):
    del model.opset_import[1]
    assert "version None of the operators of 'rainfusion'" in refusal(model, tmp_path)


@pytest.mark.parametrize("inputs", [0, 4, 7])
def test_inputs_missing_and_left_over(model, tmp_path, inputs):
    node = model.graph.node[0]
    names = (*node.input, *node.input)[:inputs]
    del node.input[:]
    node.input.extend(names)
    assert f"has {inputs} inputs" in refusal(model, tmp_path)


def test_cut_off_anywhere(model, tmp_path):
    """Also between two parts, where what is left is a whole message of protobuf."""
    path = tmp_path / "m.onnx"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidInputError, match=r"m\.onnx .*(again|copy)"):
            read_for_build(path)
    path.write_bytes(content)
    read_for_build(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("location", "/etc/passwd"),
        ("location", "../m.onnx.data"),
        ("location", "a/../../b"),
        ("location", ""),
        ("location", "9" * 256),
        ("location", "a/" * 5000),
        ("offset", "-8"),
        ("offset", "9" * 5000),
        ("length", "all"),
    ],
    ids=lambda value: value[:12],
)
def test_weights_are_read_beside_the_file_only(tmp_path, key, value):
    path = write_model(tmp_path / "m.onnx", external_data=True)
    model = onnx.load(path, load_external_data=False)
    entries = model.graph.initializer[0].external_data
    found = [entry for entry in entries if entry.key == key]
    if not found:
        found = [entries.add(key=key)]
    found[0].value = value
    assert "only a place in a file beside it is read" in refusal(model, tmp_path)


def test_an_unknown_element_type(model, tmp_path):
    model.graph.input[0].type.tensor_type.elem_type = 2000
    onnx.save(model, tmp_path / "m.onnx")
    assert read_for_build(tmp_path / "m.onnx").inputs[0].dtype == "type 2000"


# -- what TensorRT refuses -------------------------------------------------------------------------


def unknown_operator(model) -> None:
    model.graph.node[2].op_type = "NoSuchOperator"


def matrix_of_another_size(model) -> None:
    weight = numpy_helper.to_array(model.graph.initializer[0])
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight[:32].copy(), "weight"))


def sparsity_of_two(model) -> None:
    """The plugin itself refuses this one."""
    model.graph.input[1].CopyFrom(helper.make_tensor_value_info("sparsity", TensorProto.FLOAT, [2]))


@needs_rtx
@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (unknown_operator, "it knows no operator 'NoSuchOperator'"),
        (matrix_of_another_size, "must match"),
        (sparsity_of_two, "sparsity has shape [2]; it must be one number"),
    ],
)
def test_a_failed_parse_says_its_cause_alone(model, tmp_path, plugin_library, change, words):
    change(model)
    onnx.save(model, tmp_path / "m.onnx")
    (tmp_path / "recipe.yaml").write_text(PROFILE)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    with pytest.raises(EngineBuildError) as error:
        build_engine(tmp_path / "m.onnx", recipe=recipe, plugin=plugin_library)
    message = str(error.value)
    assert words in message
    for false_lead in ("Cannot find plugin", "Plugin not found", "cudaError", "ModelImporter.cpp"):
        assert false_lead not in message
    assert not (tmp_path / "m.engine").exists()
