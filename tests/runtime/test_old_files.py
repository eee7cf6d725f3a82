"""Files keep the method that they say, whatever Python's default is."""

from __future__ import annotations

import json

import pytest

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from helpers.engine_folders import PLAN, engine_metadata
from rainfusion_trt.engine.metadata import save_metadata
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import GraphAccount
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings
from rainfusion_trt.runtime import artifacts as artifacts_module
from rainfusion_trt.runtime.artifacts import Artifacts
from rainfusion_trt.runtime.graphs import Graph

RECORDED = [
    (None, "rainfusion"),  # records nothing: its nodes have version 1's
    (AttentionSettings.from_record({"sink_frames": 1}), "rainfusion"),
    (AttentionSettings("rainfusion"), "rainfusion"),
    (AttentionSettings("rainfusion2"), "rainfusion2"),
    (AttentionSettings("piecewise"), "piecewise"),
]


def read(pipe, **files) -> Artifacts:
    return Artifacts.read(
        **{"model": None, "engine": {}, "onnx": {}, "settings": {}, **files},
        checkpoint=None,
        pipe=pipe,
        dtype=None,
    )


@pytest.mark.parametrize(("recorded", "method"), RECORDED)
def test_a_file_keeps_its_method_in_pytorch_too(recorded, method, tmp_path, monkeypatch):
    pipe = tiny_pipeline(get_model("cogvideox-5b"))
    account = GraphAccount(
        model="cogvideox-5b", config=dict(pipe.transformer.config), settings=recorded
    )
    monkeypatch.setattr(artifacts_module, "graph_of_onnx", lambda path: Graph("the file", account))
    found = read(pipe, onnx={"transformer": tmp_path / "old.onnx"})
    assert found.settings.method == method


@pytest.mark.parametrize(("recorded", "method"), RECORDED)
def test_an_engine_keeps_its_method(recorded, method, tmp_path):
    pipe = tiny_pipeline(get_model("cogvideox-5b"))
    config = json.loads(json.dumps(dict(pipe.transformer.config)))
    (tmp_path / "engine.plan").write_bytes(PLAN)
    save_metadata(tmp_path, engine_metadata(config=config, settings=recorded))
    written = json.loads((tmp_path / "metadata.json").read_text())["settings"]
    assert written == ({} if recorded is None else recorded.record())
    found = read(pipe, engine={"transformer": tmp_path})
    assert found.settings.method == method
    graph = found.parts[0].graphs[0]
    graph.check_settings({})
    said = f"with method='{method}'" if recorded else "does not say what it was exported with"
    with pytest.raises(InvalidInputError, match=f"method='rainfusion_plus' was .* {said}"):
        graph.check_settings({"method": "rainfusion_plus"})
    if recorded is None:  # not even what it probably has, which nobody knows
        with pytest.raises(InvalidInputError, match="method='rainfusion' was .* does not say"):
            read(pipe, engine={"transformer": tmp_path}, settings={"method": method})
    else:
        read(pipe, engine={"transformer": tmp_path}, settings={"method": method})


def test_a_file_without_sinks_at_the_end_has_none():
    account = GraphAccount(model="cogvideox-5b", settings=AttentionSettings())
    graph = Graph("the file", account)
    graph.check_settings({"last_sink_frames": 0})
    words = "last_sink_frames=1 was asked for, but the file was exported with last_sink_frames=0"
    with pytest.raises(InvalidInputError, match=words):
        graph.check_settings({"last_sink_frames": 1})


def test_exact_frames_of_a_file_are_fixed(tmp_path, monkeypatch):
    """However a caller says them."""
    pipe = tiny_pipeline(get_model("cogvideox-5b"))
    settings = AttentionSettings(exact_frames=(2, (4, 6)))
    account = GraphAccount(
        model="cogvideox-5b", config=dict(pipe.transformer.config), settings=settings
    )
    monkeypatch.setattr(artifacts_module, "graph_of_onnx", lambda path: Graph("the file", account))
    given = {"pipe": pipe, "onnx": {"transformer": tmp_path / "x.onnx"}, "backend": "torch"}
    with rainfusion_trt.Pipeline(**given, exact_frames=[5, (2, 3), 4], device="cpu") as pipeline:
        assert pipeline.artifacts.settings == settings
    words = r"exact_frames=\(\(2, 3\),\) was asked for, but the file was exported with exact_frames"
    with pytest.raises(InvalidInputError, match=words):
        rainfusion_trt.Pipeline(**given, exact_frames=[2])


def test_without_a_file_it_is_the_default():
    with rainfusion_trt.Pipeline(
        pipe=tiny_pipeline(get_model("cogvideox-5b")), backend="torch", device="cpu"
    ) as pipeline:
        assert pipeline.artifacts.settings.method == AttentionSettings.method
    assert OPERATOR_V1_DEFAULTS.method == "rainfusion"
