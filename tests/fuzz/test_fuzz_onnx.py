"""Whatever an ONNX file holds: everything up to TensorRT takes it, or refuses it in one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from helpers.engine_models import PROFILE, write_model
from helpers.fuzzing import bounded, damaged_bytes, nothing_written, refused_or_fine
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.recipe import EngineRecipe, load_recipe
from rainfusion_trt.engine.shapes import resolve_profiles
from rainfusion_trt.engine.target import check_graph
from rainfusion_trt.operator.native import load_library
from rainfusion_trt.runtime.graphs import graph_of_onnx

PROPERTIES = {
    "rainfusion.model": "wan2.1-1.3b",
    "rainfusion.config": '{"attention_head_dim": 64, "num_layers": 2, "patch_size": [1, 2, 2]}',
    "rainfusion.size": "9x64x96",
    "rainfusion.dtype": "float16",
    "rainfusion.attention_nodes": "2",
    "rainfusion.settings": '{"alpha": 0.9, "method": "rainfusion", "sink_frames": 1}',
    "rainfusion.dynamic": "true",
    "rainfusion.loras": '[{"file": "style.pt", "scale": 0.5, "sha256": "ab", "layers": 4}]',
}
BY_SIZE = EngineRecipe.model_validate(
    {
        "model": "wan2.1-1.3b",
        "precision": "float16",
        "sizes": {"small": {"frames": 9, "height": 64, "width": 96, "batch": 1}},
    }
)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """A model with weights beside it and the whole account."""
    path = tmp_path_factory.mktemp("onnx") / "m.onnx"
    return write_model(path, external_data=True, properties=PROPERTIES)


@pytest.fixture(scope="module")
def intact(path) -> bytes:
    return path.read_bytes()


@pytest.fixture(scope="module")
def by_shape(tmp_path_factory) -> EngineRecipe:
    file = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    file.write_text(PROFILE)
    return load_recipe(file)


@pytest.fixture(scope="module")
def library(plugin_library):
    return load_library(plugin_library)


@pytest.fixture
def use(path, by_shape, library):
    """Everything that reads a file before TensorRT does."""

    def use(content: bytes) -> None:
        path.write_bytes(content)
        with nothing_written(path.parent):
            refused_or_fine(lambda: graph_of_onnx(path))
            file = refused_or_fine(lambda: read_for_build(path))
            if file is None:
                return
            for recipe in (by_shape, BY_SIZE):
                refused_or_fine(lambda recipe=recipe: resolve_profiles(recipe, file))
            refused_or_fine(lambda: check_graph(library, file))
            hashes = dict.fromkeys(file.data_files, "0" * 64)
            refused_or_fine(lambda: file.check_sha256(hashes))

    return use


def test_the_intact_file_is_taken(path, intact, by_shape):
    path.write_bytes(intact)
    assert resolve_profiles(by_shape, read_for_build(path))


@bounded(150)
@given(data=st.data())
def test_any_damage_of_the_file(use, intact, data):
    use(data.draw(damaged_bytes(intact)))


@st.composite
def damaged_message(draw: st.DrawFn, message: Message) -> None:
    """Change one field of a protobuf message, at any depth."""
    fields = [field for field, _ in message.ListFields()]
    unset = [f for f in message.DESCRIPTOR.fields if f not in fields]
    if not fields or not draw(st.integers(0, 9)):
        field = draw(st.sampled_from(unset or fields))
        if field.type == field.TYPE_MESSAGE:
            (getattr(message, field.name).add if field.is_repeated else message.SetInParent)()
            return
    else:
        field = draw(st.sampled_from(fields))
    values = _values(field)
    if field.is_repeated:
        container = getattr(message, field.name)
        place = draw(st.integers(0, len(container) - 1)) if len(container) else None
        if place is None:
            container.append(draw(values))
        elif field.type == field.TYPE_MESSAGE and draw(st.integers(0, 5)):
            draw(damaged_message(container[place]))
        elif draw(st.booleans()):
            del container[place]
        elif field.type == field.TYPE_MESSAGE:
            container.add().CopyFrom(container[place])
        else:
            container[place] = draw(values)
    elif field.type == field.TYPE_MESSAGE:
        if draw(st.integers(0, 5)):
            draw(damaged_message(getattr(message, field.name)))
        else:
            message.ClearField(field.name)
    elif draw(st.integers(0, 4)):
        setattr(message, field.name, draw(values))
    else:
        message.ClearField(field.name)


def _values(field) -> st.SearchStrategy:
    if field.type in (field.TYPE_STRING, field.TYPE_BYTES):
        texts = st.sampled_from(["", "[/red]", "\x1b[2J", "../x", "/etc/passwd", "-1", "9" * 5000])
        texts |= st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
        return texts if field.type == field.TYPE_STRING else texts.map(str.encode)
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return st.floats(width=32)
    if field.type == field.TYPE_ENUM:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type in (field.TYPE_INT32,):
        return st.integers(-5, 30) | st.sampled_from([-(2**31), 2**31 - 1])
    if field.type == field.TYPE_UINT64:
        return st.integers(0, 2**64 - 1)
    return st.integers(-5, 200) | st.sampled_from([-(2**63), 2**63 - 1])


@bounded(150)
@given(data=st.data())
def test_any_field_anywhere(use, intact, data):
    model = onnx.ModelProto.FromString(intact)
    for _ in range(data.draw(st.integers(1, 3))):
        data.draw(damaged_message(model))
    use(model.SerializeToString())


@bounded(60)
@given(data=st.data(), name=st.sampled_from(sorted(PROPERTIES)))
def test_any_account(use, intact, data, name):
    model = onnx.ModelProto.FromString(intact)
    texts = st.sampled_from(
        ["", "{}", "[]", "null", "NaN", "-1", "1e999", "[" * 50_000, "9" * 5000]
    )
    texts |= st.binary(max_size=6).map(lambda b: b.decode(errors="replace"))
    content = data.draw(texts | damaged_bytes(PROPERTIES[name].encode()).map(_text))
    for entry in model.metadata_props:
        if entry.key == name:
            entry.value = content
    use(model.SerializeToString())


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def test_damage_is_not_all_of_one_kind(intact):
    """The fuzzers reach past protobuf: what they make is often read."""
    read = 0

    @bounded(50)
    @given(content=damaged_bytes(intact))
    def count(content):
        nonlocal read
        try:
            onnx.ModelProto.FromString(content)
            read += 1
        except DecodeError:
            pass

    count()
    assert read > 5
