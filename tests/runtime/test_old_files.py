"""Files keep the method that they say, whatever Python's default is."""

from __future__ import annotations

import pytest

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.graph_file import GraphAccount
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings
from rainfusion_trt.runtime import artifacts as artifacts_module
from rainfusion_trt.runtime.artifacts import Artifacts
from rainfusion_trt.runtime.graphs import Graph


@pytest.mark.parametrize(
    ("recorded", "method"),
    [
        (None, "rainfusion"),  # records nothing: its nodes have version 1's
        (AttentionSettings.from_record({"sink_frames": 1}), "rainfusion"),
        (AttentionSettings("rainfusion2"), "rainfusion2"),
        (AttentionSettings("piecewise"), "piecewise"),
    ],
)
def test_a_file_keeps_its_method_in_pytorch_too(recorded, method, tmp_path, monkeypatch):
    pipe = tiny_pipeline(get_model("cogvideox-5b"))
    account = GraphAccount(
        model="cogvideox-5b", config=dict(pipe.transformer.config), settings=recorded
    )
    monkeypatch.setattr(artifacts_module, "graph_of_onnx", lambda path: Graph("the file", account))
    found = Artifacts.read(
        model=None,
        engine={},
        onnx={"transformer": tmp_path / "old.onnx"},
        checkpoint=None,
        pipe=pipe,
        settings={},
        dtype=None,
    )
    assert found.settings.method == method


def test_without_a_file_it_is_the_default():
    with rainfusion_trt.Pipeline(
        pipe=tiny_pipeline(get_model("cogvideox-5b")), backend="torch", device="cpu"
    ) as pipeline:
        assert pipeline.artifacts.settings.method == AttentionSettings.method
    assert OPERATOR_V1_DEFAULTS.method == "rainfusion"
