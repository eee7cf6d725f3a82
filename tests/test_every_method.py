"""Methods and settings go wherever one is named: routing, export, records, command lines."""

from __future__ import annotations

import json

import onnx
import pytest
import torch
from typer.main import get_command
from typer.testing import CliRunner

import rainfusion_trt
from helpers.plain_dit import GRID, PlainDiT, example
from rainfusion_trt import cli
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import export_module, operator
from rainfusion_trt.export.cli import app
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator import reference
from rainfusion_trt.operator.settings import (
    LATER_ATTRIBUTES,
    METHODS,
    RECORDED,
    AttentionSettings,
)

SIZE = VideoSize(25, 160, 256)  # 7 x 10 x 16 tokens: several windows and blocks
every_method = pytest.mark.parametrize("method", METHODS)


@every_method
def test_enable_computes_it(method, monkeypatch):
    model = get_model("cogvideox-5b")
    config = model.config("tiny")
    config.update(sample_frames=SIZE.frames, sample_height=20, sample_width=32)
    transformer = model.create(config, dtype=torch.float32)
    call = model.forward_kwargs(model.example_inputs(transformer, SIZE, batch=1))
    seen = []
    face = reference.attention

    def record(*arguments, **more):
        seen.append(arguments[-1].method)
        return face(*arguments, **more)

    monkeypatch.setattr(reference, "attention", record)
    with torch.no_grad():
        routing = rainfusion_trt.enable(transformer, sparsity=0.0, method=method)
        dense = transformer(**call, return_dict=False)[0]
        routing.sparsity = 0.8
        sparse = transformer(**call, return_dict=False)[0]
    assert seen == [method] * 4
    # How much they differ is the method's affair: random weights attend to all keys alike, of which
    # means hold everything.
    assert sparse.isfinite().all() and not torch.equal(sparse, dense)


@every_method
def test_an_export_says_it_and_its_dense_body_runs(method, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "m.onnx"
    settings = AttentionSettings(method)
    module = PlainDiT().eval()
    report = export_module(
        module, example(), grid=GRID, output=path, settings=settings, run_compare=True
    )
    assert report.error <= 1e-5  # float32 sums of a hundred terms, through two layers
    model = onnx.load(path)
    nodes = [node for node in model.graph.node if node.op_type == operator.OP_TYPE]
    for node in nodes:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes["method"] == method.encode()
    properties = {p.key: p.value for p in model.metadata_props}
    recorded = json.loads(properties["rainfusion.settings"])
    assert AttentionSettings.from_record(recorded) == settings


@every_method
def test_the_exporters_command_line_takes_it(method, tmp_path):
    output = tmp_path / "m.onnx"
    own = ["--module", "helpers.plain_dit:make", "--grid", "3,4,6", "--text", "last"]
    result = CliRunner().invoke(
        app, [*own, "--text-tokens", "7", "--method", method, "--output", str(output)]
    )
    assert result.exit_code == 0, result.output
    properties = {p.key: p.value for p in onnx.load(output).metadata_props}
    assert json.loads(properties["rainfusion.settings"])["method"] == method


def test_settings_of_a_model_are_options_of_every_command_that_has_them():
    commands = get_command(cli.app).commands
    for name in ("export", "run", "calibrate-cache"):
        options = {parameter.name for parameter in commands[name].params}
        wanted = {*RECORDED, *LATER_ATTRIBUTES} - {"precision"}  # an option of another name
        assert wanted <= options, name


def test_a_record_without_a_method_has_version_1s():
    assert AttentionSettings.from_record({"sink_frames": 2}).method == "rainfusion"


def test_a_wrong_name_lists_them_all():
    with pytest.raises(InvalidInputError, match=", ".join(METHODS)):
        AttentionSettings("windows")
