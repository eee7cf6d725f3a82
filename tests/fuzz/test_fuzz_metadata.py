"""Whatever metadata.json holds: it is read, or refused in one line."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from helpers.engine_folders import PLAN, engine_metadata
from helpers.fuzzing import bounded, damaged_bytes, damaged_json, nothing_written, refused_or_fine
from rainfusion_trt.cli import app
from rainfusion_trt.engine.metadata import load_metadata, save_metadata
from rainfusion_trt.hashing import json_sha256
from rainfusion_trt.runtime.engine_io import select_profile, tensor_infos
from rainfusion_trt.runtime.graphs import graph_of_engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m.engine")
    (folder / "engine.plan").write_bytes(PLAN)
    save_metadata(folder, engine_metadata())
    return folder


@pytest.fixture(scope="module")
def intact(folder):
    return (folder / "metadata.json").read_bytes()


def use(folder) -> None:
    """Everything that reads metadata before TensorRT is asked."""
    metadata = refused_or_fine(lambda: load_metadata(folder))
    if metadata is not None:
        refused_or_fine(lambda: tensor_infos((*metadata.inputs, *metadata.outputs)))
        refused_or_fine(lambda: select_profile(metadata, {i.name: (1, 8) for i in metadata.inputs}))
        refused_or_fine(lambda: graph_of_engine(folder))
    result = CliRunner().invoke(app, ["info", "--engine", str(folder)])
    assert result.exit_code == (2 if metadata is None else 0), result.output
    assert result.stderr.count("\n") == (1 if metadata is None else 0)
    assert result.stdout.replace("\n", "").isprintable()


@bounded(60)
@given(data=st.data())
def test_any_value_anywhere(folder, intact, data):
    """With a hash that fits, as somebody would write it who knows how."""
    content = json.loads(intact)
    del content["sha256"]
    content = data.draw(damaged_json(content))
    if isinstance(content, dict):
        content["sha256"] = json_sha256(content)
    (folder / "metadata.json").write_text(json.dumps(content))
    with nothing_written(folder):
        use(folder)


@bounded(40)
@given(data=st.data())
def test_any_damage_of_the_file(folder, intact, data):
    (folder / "metadata.json").write_bytes(data.draw(damaged_bytes(intact)))
    with nothing_written(folder):
        use(folder)


@bounded(20)
@given(data=st.data())
def test_a_changed_value_is_noticed(folder, intact, data):
    """Without the hash being made anew, no other content passes."""
    content = json.loads(intact)
    changed = data.draw(damaged_json({k: v for k, v in content.items() if k != "sha256"}))
    if not isinstance(changed, dict):
        changed = {}
    changed["sha256"] = content["sha256"]
    (folder / "metadata.json").write_text(json.dumps(changed))
    accepted = refused_or_fine(lambda: load_metadata(folder))
    assert accepted is None or json.dumps(changed, sort_keys=True) == json.dumps(
        content, sort_keys=True
    )
