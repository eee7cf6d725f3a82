"""`export_model` with files in its way and with bad requests."""

from __future__ import annotations

import onnx
import pytest
import torch

from rainfusion_trt.errors import ExportError, InvalidInputError, UnsupportedError
from rainfusion_trt.export import (
    check_model,
    export_model,
    exporter,
    fake_transformer,
    writer,
)
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.routing import RainFusionSettings

MODEL = get_model("cogvideox-2b")  # the quickest to trace


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)


def export(transformer, output, size=MODEL.tiny_size, **options):
    return export_model(MODEL, transformer, size, output=output, **options)


def test_large_weights_go_beside_the_file(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "EMBEDDED_BYTES", 100_000)
    written = []
    output = tmp_path / "new" / "model.onnx"
    report = export(
        transformer, output, run_compare=True, progress=lambda done, total: written.append(done)
    )
    assert report.weights == "beside" and report.error <= 1e-4
    assert {p.name for p in output.parent.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert output.stat().st_size < 200_000 < (tmp_path / "new" / "model.onnx.data").stat().st_size
    assert written == sorted(written) and written[-1] <= report.weight_bytes
    assert check_model(output).attentions == 1


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ExportError])
def test_failure_leaves_nothing_behind_and_the_old_file_alone(
    transformer, tmp_path, monkeypatch, failure
):
    def fail(path):
        assert path.is_file()
        raise failure("stopped")

    output = export(transformer, tmp_path / "model.onnx").path
    old = output.read_bytes()
    monkeypatch.setattr(exporter, "check_model", fail)
    with pytest.raises(failure):
        export(transformer, output)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    assert output.read_bytes() == old


def test_settings_become_attributes(transformer, tmp_path):
    settings = RainFusionSettings("rainfusion2", 0.8, 2)
    report = export(transformer, tmp_path / "model.onnx", settings=settings)
    (node,) = [n for n in onnx.load(report.path).graph.node if n.domain == "rainfusion"]
    values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    assert (values["method"], values["sink_frames"]) == (b"rainfusion2", 2)
    assert values["alpha"] == pytest.approx(0.8)


def test_a_wrong_export_fails_the_comparison(transformer, tmp_path, monkeypatch):
    right, wrong = "MatMul (typed_weights, value)", "MatMul (typed_weights, key)"
    body = exporter.operator._BODY
    assert right in body
    monkeypatch.setattr(exporter.operator, "_BODY", body.replace(right, wrong))
    with pytest.raises(ExportError, match="differs from PyTorch"):
        export(transformer, tmp_path / "model.onnx", run_compare=True)
    assert not list(tmp_path.iterdir())


def test_baked_positions_refuse_dynamic_shapes(transformer, tmp_path):
    with pytest.raises(UnsupportedError, match="--fixed"):
        export(transformer, tmp_path / "model.onnx", dynamic=True)


def test_comparison_needs_float32(tmp_path):
    half = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float16)
    with pytest.raises(InvalidInputError, match="float16.*--dtype fp32"):
        export(half, tmp_path / "model.onnx", run_compare=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, "batch=0"),
        ({"batch": "2"}, "batch='2'"),
        ({"size": VideoSize(10, 64, 96)}, "frames=10"),
        ({"size": VideoSize(9, 60, 96)}, "height=60"),
        ({"size": VideoSize(9, 64, 0)}, "width=0"),
    ],
)
def test_bad_requests_are_named_before_work_starts(transformer, tmp_path, options, message):
    with pytest.raises(InvalidInputError, match=message):
        export(transformer, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_bad_output_is_named(transformer, tmp_path):
    with pytest.raises(InvalidInputError, match=r"must end in \.onnx"):
        export(transformer, tmp_path / "model.engine")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(InvalidInputError, match="is a folder"):
        export(transformer, tmp_path / "folder.onnx")


def test_single_frame_cannot_stand_for_many(tmp_path):
    model = get_model("cogvideox-5b")
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    with pytest.raises(InvalidInputError, match="dynamic axis frames"):
        export_model(
            model, transformer, VideoSize(1, 64, 96), output=tmp_path / "m.onnx", dynamic=True
        )


def test_attention_that_goes_past_the_operator_is_an_error(transformer, tmp_path, monkeypatch):
    monkeypatch.setattr(type(MODEL), "attention_count", lambda self, config: 2)
    with pytest.raises(ExportError, match="1 attentions .* has 2"):
        export(transformer, tmp_path / "model.onnx")


def test_graph_without_weights_is_the_same_graph(exported, tmp_path):
    """Full 5B, two layers: no memory for weights, every weight named with its place."""
    model = get_model("cogvideox-5b")
    transformer = fake_transformer(model, model.config("full", layers=2), dtype=torch.float32)
    output = tmp_path / "model.onnx"
    report = export_model(model, transformer, VideoSize(49, 480, 720), output=output)
    assert report.weights == "none" and [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    proto = onnx.load(output, load_external_data=False)
    places = []
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            entry = {e.key: e.value for e in tensor.external_data}
            assert entry["location"] == "model.onnx.data"
            places.append((int(entry["offset"]), int(entry["length"])))
    parameters = [p.numel() * 4 for p in transformer.parameters()]
    assert sorted(length for _, length in places) == sorted(parameters)
    ends = [offset + length for offset, length in sorted(places)]
    assert [offset for offset, _ in sorted(places)] == [0, *ends[:-1]]
    small = exported("cogvideox-5b").report.facts
    assert report.facts.operators == small.operators


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_type_of_torch_does_not_matter(transformer, tmp_path, kind):
    """It was that of the input `sparsity`, which the plugin reads as float32."""
    torch.set_default_dtype(kind)
    try:
        report = export_model(
            MODEL, transformer, MODEL.tiny_size, output=tmp_path / "m.onnx", run_compare=True
        )
    finally:
        torch.set_default_dtype(torch.float32)
    kinds = {i.name: i.type.tensor_type.elem_type for i in onnx.load(report.path).graph.input}
    assert set(kinds.values()) <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert kinds["sparsity"] == onnx.TensorProto.FLOAT


def test_autocast_is_refused_before_work_starts(transformer, tmp_path):
    refused = pytest.raises(InvalidInputError, match="autocast is on")
    with torch.autocast("cpu", torch.bfloat16), refused:
        export_model(MODEL, transformer, MODEL.tiny_size, output=tmp_path / "m.onnx")
