"""The account of an exported file: written, read, and refused where it is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from helpers.engine_models import write_model
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import FusedLora, GraphAccount, read_onnx
from rainfusion_trt.models import VideoSize
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.graphs import graph_of_onnx

# Metadata that rainfusion-trt 0.1.0 wrote for a tiny wan2.2-a14b with a LoRA, key by key.
OF_0_1 = {
    "rainfusion.model": "wan2.2-a14b",
    "rainfusion.config": '{"attention_head_dim": 64, "num_layers": 2, "patch_size": [1, 2, 2]}',
    "rainfusion.size": "9x64x96",
    "rainfusion.component": "transformer_2",
    "rainfusion.dtype": "float16",
    "rainfusion.attention_nodes": "2",
    "rainfusion.settings": '{"alpha": 0.8, "method": "rainfusion_plus", "sink_frames": 2}',
    "rainfusion.dynamic": "true",
    "rainfusion.version": "0.1.0",
    "rainfusion.loras": '[{"file": "style.pt", "scale": 0.5, "sha256": "ab", "layers": 4}]',
    "rainfusion.weights": "none",
}
ACCOUNT = GraphAccount(
    model="wan2.2-a14b",
    component="transformer_2",
    config={"attention_head_dim": 64, "num_layers": 2, "patch_size": [1, 2, 2]},
    size="9x64x96",
    dtype="float16",
    attention_nodes=2,
    settings=AttentionSettings("rainfusion_plus", 0.8, 2),
    dynamic=True,
    loras=(FusedLora("style.pt", 0.5, "ab", 4),),
    weights="none",
    version="0.1.0",
)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "m.onnx"


def test_files_of_0_1_say_the_same_to_everyone(path):
    write_model(path, properties={**OF_0_1, "other.program": "x"})
    assert read_onnx(path).account == ACCOUNT
    assert ACCOUNT.clip == VideoSize(frames=9, height=64, width=96)
    assert read_for_build(path).account == ACCOUNT
    assert graph_of_onnx(path).account == ACCOUNT


def test_the_keys_are_those_of_0_1():
    written = ACCOUNT.to_metadata()
    assert list(written) == list(GraphAccount().from_metadata(written, "m").to_metadata())
    assert written.keys() == OF_0_1.keys()
    texts = ("model", "size", "component", "dtype", "version", "weights")
    for key, value in OF_0_1.items():
        if key.removeprefix("rainfusion.") in texts:
            assert written[key] == value
        else:
            assert json.loads(written[key]) == json.loads(value)


def test_what_nobody_said_is_not_written():
    account = GraphAccount(model="Own", dynamic=False, loras=(), weights=None, config={})
    assert account.to_metadata() == {"rainfusion.model": "Own", "rainfusion.dynamic": "false"}


def test_a_file_of_another_program(path):
    account = read_onnx(write_model(path, properties={"model": "x"})).account
    assert account == GraphAccount()
    assert account.component == "transformer" and not account.dynamic
    assert account.settings is None and account.clip is None


def test_settings_left_out_mean_version_1_of_the_operator(path):
    write_model(path, properties={"rainfusion.settings": '{"sink_frames": 3}'})
    assert read_onnx(path).account.settings == AttentionSettings("rainfusion", 0.9, 3)


LORA_WITH_MORE = '[{"file": "x", "scale": 1, "sha256": "", "layers": 1, "skale": 1}]'


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("dynamic", "yes", "not JSON"),
        ("dynamic", '"true"', "='true' must be true or false"),
        ("dynamic", "1", "=1 must be true or false"),
        ("attention_nodes", "two", "not JSON"),
        ("attention_nodes", "2.5", "=2.5 must be an integer"),
        ("attention_nodes", "true", "=True must be an integer"),
        ("config", "[1]", r"=\[1\] must be a mapping"),
        ("config", "{", "not JSON"),
        ("settings", '{"alpha": 2}', "alpha=2"),
        ("settings", '{"beta": 2}', "'beta'"),
        ("settings", '"dense"', "'dense'"),
        ("size", "9x64", "='9x64': not FRAMESxHEIGHTxWIDTH"),
        ("loras", "{}", "={} must be a list"),
        (
            "loras",
            '[{"file": "x"}]',
            r"\.0\.scale is missing: give it; .*\.0\.sha256 is missing",
        ),
        ("loras", LORA_WITH_MORE, r"\.0\.skale is no field here: leave it out"),
        ("attention_nodes", "-1", "=-1 must be 0 or more"),
        ("weights", "elsewhere", "='elsewhere' must be 'none'"),
    ],
)
@pytest.mark.parametrize("read", [read_onnx, read_for_build, graph_of_onnx])
def test_wrong_metadata_is_refused_by_its_key(path, key, text, words, read):
    write_model(path, properties={**OF_0_1, f"rainfusion.{key}": text})
    with pytest.raises(InvalidInputError, match=rf"m\.onnx: .*rainfusion\.{key}.*{words}") as e:
        read(path)
    assert "\n" not in str(e.value) and str(e.value).endswith("export it again")


@pytest.mark.parametrize("read", [read_onnx, read_for_build, graph_of_onnx])
def test_missing_unreadable_and_empty(path, read):
    with pytest.raises(InvalidInputError, match=r"no ONNX file at .*m\.onnx: write one"):
        read(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidInputError, match=r"m\.onnx is not a readable ONNX file"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(InvalidInputError, match="holds no graph"):
        read(path)


def test_inputs_and_nodes(path):
    write_model(path)
    model = onnx.load(path)
    weight = onnx.helper.make_tensor_value_info("weight", onnx.TensorProto.FLOAT16, [64, 64])
    model.graph.input.append(weight)  # older files name their weights among the inputs
    onnx.save(model, path)
    file = read_onnx(path)
    assert [(t.name, t.dtype, t.shape) for t in file.inputs] == [
        ("x", "float16", ("batch", 2, 29, 64)),
        ("sparsity", "float32", (1,)),
    ]
    assert [tensor.name for tensor in file.outputs] == ["sample"]
    assert [node.name for node in file.attentions] == ["attn_first", "attn_second"]


def test_reading_needs_neither_torch_nor_diffusers(path):
    write_model(path, properties=OF_0_1)
    code = (
        "import sys; from rainfusion_trt.graph_file import read_onnx\n"
        f"assert read_onnx({str(path)!r}).account.model == 'wan2.2-a14b'\n"
        "print([m for m in ('torch', 'diffusers', 'tensorrt') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]", result.stderr
