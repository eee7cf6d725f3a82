"""The files of an export: what they replace, what they never touch, and what a kill leaves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from typer.testing import CliRunner

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import check_model, export_model, exporter, request, writer
from rainfusion_trt.export.cli import app
from rainfusion_trt.files.staging import staging_folder
from rainfusion_trt.graph_file import GraphAccount, read_onnx
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import AttentionSettings

MODEL = get_model("cogvideox-2b")  # the quickest to trace
BESIDE = 50_000  # bytes of weights, above the limit of `beside`


def graph_of(value: float, size: int = BESIDE) -> ir.Model:
    """A graph with one weight, without tracing anything."""
    weight = ir.Value(name="w", const_value=ir.tensor(np.full(size // 4, value, np.float32)))
    weight.shape, weight.type = ir.Shape([size // 4]), ir.TensorType(ir.DataType.FLOAT)
    given = ir.Value(name="x", shape=weight.shape, type=weight.type)
    node = ir.Node("", "Add", [given, weight])
    node.outputs[0].name, node.outputs[0].shape = "y", weight.shape
    node.outputs[0].type = weight.type
    graph = ir.Graph(
        [given], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g"
    )
    model = ir.Model(graph, ir_version=10)
    model.metadata_props.update(GraphAccount(model="tiny").to_metadata())
    return model


@pytest.fixture
def beside(monkeypatch):
    """Weights of `graph_of` go into a file of their own, unless they are made smaller."""
    monkeypatch.setattr(writer, "EMBEDDED_BYTES", BESIDE - 1)


def write(output: Path, value: float, size: int = BESIDE) -> None:
    writer.check_output(output)
    with writer.staged(output) as path:
        writer.write(graph_of(value, size), path)


def weight(output: Path) -> float:
    """The value that graph and weights of a pair hold; raises if they are not of one export."""
    read_onnx(output).verify_data()
    (tensor,) = onnx.load(output).graph.initializer
    return float(onnx.numpy_helper.to_array(tensor)[0])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- replacing its own -----------------------------------------------------------------------------


def test_its_own_files_are_replaced_by_larger_and_smaller_ones(tmp_path, beside):
    output = tmp_path / "m.onnx"
    for value, size, files in (
        (1.0, BESIDE, ["m.onnx", "m.onnx.data"]),
        (2.0, BESIDE, ["m.onnx", "m.onnx.data"]),
        (3.0, 400, ["m.onnx"]),
        (4.0, BESIDE, ["m.onnx", "m.onnx.data"]),
    ):
        write(output, value, size)
        assert weight(output) == value
        assert names(tmp_path) == files
        assert writer.is_whole(output)


def test_the_seal_is_an_entry_of_the_metadata(tmp_path):
    output = tmp_path / "m.onnx"
    write(output, 1.0, 400)
    proto = onnx.load(output)
    onnx.checker.check_model(proto)
    assert proto.metadata_props[-1].key == "rainfusion.seal"
    assert len(proto.metadata_props[-1].value) == 64
    assert read_onnx(output).account.model == "tiny"


def save_again(path: Path) -> None:
    """As programs that change a graph do; the metadata stays."""
    proto = onnx.load(path, load_external_data=False)
    proto.doc_string = "simplified"
    onnx.save(proto, path)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "change", [save_again, cut, lambda path: path.write_bytes(b""), lambda path: path.unlink()]
)
def test_files_that_are_not_as_they_were_written_are_kept(tmp_path, beside, change):
    """Also weights whose graph is gone: nothing says any more whose they are."""
    output = tmp_path / "m.onnx"
    write(output, 1.0)
    change(output)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InvalidInputError, match="not as rainfusion-trt has written it"):
        write(output, 2.0)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not writer.is_whole(output)


@pytest.mark.parametrize("change", [cut, lambda path: path.write_bytes(b"x" * BESIDE)])
@pytest.mark.parametrize("size", [400, BESIDE])
def test_weights_of_others_are_kept(tmp_path, beside, change, size):
    """Whether the new export would have overwritten or removed them."""
    output, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    write(output, 1.0)
    change(data)
    content = data.read_bytes()
    assert not writer.is_whole(output)
    with pytest.raises(InvalidInputError, match=r"m\.onnx\.data exists, and is not as"):
        write(output, 2.0, size)
    assert data.read_bytes() == content


def test_weights_that_come_while_the_graph_is_made_are_kept(tmp_path, beside):
    output, data = tmp_path / "m.onnx", tmp_path / "m.onnx.data"
    with (
        pytest.raises(InvalidInputError, match=r"m\.onnx\.data exists"),
        writer.staged(output) as path,
    ):
        writer.write(graph_of(1.0), path)
        data.write_text("mine")
    assert data.read_text() == "mine"
    assert names(tmp_path) == ["m.onnx.data"]


# -- before the work starts ------------------------------------------------------------------------


@pytest.fixture
def no_work(monkeypatch):
    """Fail where weights would be made or a module traced."""

    def fail(*_args, **_kwargs):
        pytest.fail("the work has started")

    monkeypatch.setattr(request.WeightRequest, "transformer", fail)
    monkeypatch.setattr(request, "make_module", fail)
    monkeypatch.setattr(exporter, "capture", fail)


@pytest.mark.parametrize(
    "kind",
    [
        ("--model", "cogvideox-2b", "--random-weights", "--config", "tiny"),
        ("--module", "helpers.plain_dit:make", "--grid", "3,4,6"),
    ],
)
def test_targets_are_checked_before_weights_are_loaded(tmp_path, no_work, kind):
    (tmp_path / "m.onnx.data").write_text("mine")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.onnx").symlink_to(tmp_path / "file")
    for output, words in {
        tmp_path / "m.onnx": r"m.onnx.data exists, and is not as",
        tmp_path / "folder.onnx": "is a folder",
        tmp_path / "link.onnx": "is a link",
        tmp_path / "file" / "m.onnx": "is not a folder",
        tmp_path / "m.engine": "must end in .onnx",
        "/proc/m.onnx": "cannot be written",
    }.items():
        result = CliRunner().invoke(app, [*kind, "--output", str(output)])
        assert result.exit_code == 2, result.output
        assert words in result.output and result.output.count("\n") == 1
    assert (tmp_path / "m.onnx.data").read_text() == "mine"


def test_targets_are_checked_before_tracing(tmp_path, no_work):
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    (tmp_path / "m.onnx").write_text("mine")
    for output in (tmp_path / "m.onnx", Path("/proc/m.onnx")):
        with pytest.raises(InvalidInputError, match=r"not as rainfusion-trt|cannot be written"):
            export_model(MODEL, transformer, MODEL.tiny_size, output=output)


# -- killed, and two at once -----------------------------------------------------------------------

EXPORT = """
import sys, time
from pathlib import Path
from rainfusion_trt.export import writer
sys.path.insert(0, sys.argv[2])
from test_export_files import graph_of

writer.EMBEDDED_BYTES = 1000
with writer.staged(Path(sys.argv[1])) as path:
    writer.write(graph_of(1.0), path)
    print("written", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_a_killed_export_leaves_is_removed_by_the_next(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(tmp_path / "m.onnx"), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "written\n"
    hidden = staging_folder(tmp_path / "m.onnx")
    process.send_signal(number)
    process.wait(30)
    process.stdout.close()
    assert sum(file.stat().st_size for file in hidden.rglob("*") if file.is_file()) > BESIDE
    assert not (tmp_path / "m.onnx").exists()
    write(tmp_path / "other.onnx", 2.0)
    assert names(tmp_path) == ["other.onnx"]


def test_two_exports_to_one_name_never_mix(tmp_path, beside):
    output = tmp_path / "m.onnx"
    failures = []

    def export(value: float) -> None:
        try:
            for _ in range(5):
                write(output, value)
        except Exception as error:  # shown by the test
            failures.append(error)

    threads = [threading.Thread(target=export, args=(value,)) for value in (1.0, 2.0, 3.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert weight(output) in (1.0, 2.0, 3.0)
    assert names(tmp_path) == ["m.onnx", "m.onnx.data"]


def test_a_real_export_is_sealed_and_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "EMBEDDED_BYTES", 100_000)
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    output = tmp_path / "m.onnx"
    export_model(MODEL, transformer, MODEL.tiny_size, output=output)
    assert writer.is_whole(output) and check_model(output).attentions == 1
    copy = shutil.copytree(tmp_path, tmp_path / "copy")
    assert writer.is_whole(copy / "m.onnx")
    settings = AttentionSettings("rainfusion2")
    export_model(MODEL, transformer, MODEL.tiny_size, output=output, settings=settings)
    assert read_onnx(output).account.settings.method == "rainfusion2"
