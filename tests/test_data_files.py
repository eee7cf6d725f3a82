"""A graph is tied to the weights beside it: those of another export are refused."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
import torch

from helpers.engine_models import write_model
from rainfusion_trt import hashing
from rainfusion_trt.engine import build
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import export_model, writer
from rainfusion_trt.graph_file import DataFile, read_onnx
from rainfusion_trt.hashing import file_sha256, kept_sha256
from rainfusion_trt.models import get_model
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

MODEL = get_model("cogvideox-2b")
DATA = "m.onnx.data"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Two exports of one name whose weights have the same size."""
    folders = [tmp_path_factory.mktemp(name) for name in "ab"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "EMBEDDED_BYTES", 100_000)
        for seed, folder in enumerate(folders):
            config = MODEL.config("tiny", layers=1)
            transformer = MODEL.create(config, dtype=torch.float32, seed=seed)
            export_model(MODEL, transformer, MODEL.tiny_size, output=folder / "m.onnx")
    return folders


@pytest.fixture
def mixed(exports, tmp_path) -> Path:
    """The graph of one with the weights of the other, as two exports at one time can leave it."""
    shutil.copy(exports[0] / "m.onnx", tmp_path)
    shutil.copy(exports[1] / DATA, tmp_path)
    return tmp_path / "m.onnx"


def start_build(path: Path) -> None:
    """The part of an engine build that hashes what it builds from."""
    request = SimpleNamespace(file=read_for_build(path), library=None, tensorrt=None)
    build._sources(request, None)


def test_an_export_names_its_weights(exports):
    for folder in exports:
        data = read_onnx(folder / "m.onnx").account.data
        size = (folder / DATA).stat().st_size
        assert data == DataFile(DATA, size, file_sha256(folder / DATA))
    sizes = {(folder / DATA).stat().st_size for folder in exports}
    assert len(sizes) == 1
    OnnxRuntimeBackend(exports[0] / "m.onnx")


@pytest.mark.parametrize("use", [OnnxRuntimeBackend, start_build])
def test_the_weights_of_another_export_are_refused(mixed, use):
    with pytest.raises(InvalidInputError, match=f"{DATA} does not have the hash.*another export"):
        use(mixed)


@pytest.mark.parametrize("use", [OnnxRuntimeBackend, read_for_build])
def test_another_size_is_seen_without_hashing(exports, tmp_path, use, monkeypatch):
    monkeypatch.setattr(hashing, "file_sha256", lambda path: pytest.fail("hashed"))
    for name in ("m.onnx", DATA):
        shutil.copy(exports[0] / name, tmp_path)
    with (tmp_path / DATA).open("ab") as file:
        file.write(b"more")
    with pytest.raises(InvalidInputError, match=rf"{DATA} has \d+ bytes instead of \d+"):
        use(tmp_path / "m.onnx")


def without_account(path: Path) -> None:
    proto = onnx.load(path, load_external_data=False)
    entries = [e for e in proto.metadata_props if e.key != "rainfusion.data"]
    del proto.metadata_props[:]
    proto.metadata_props.extend(entries)
    onnx.save(proto, path)


def test_files_of_older_versions_stay_readable(mixed):
    without_account(mixed)
    assert read_onnx(mixed).account.data is None
    OnnxRuntimeBackend(mixed)


def test_weights_that_another_program_has_moved_are_not_judged(tmp_path):
    record = {"file": "before.onnx.data", "size": 1, "sha256": "ab"}
    properties = {"rainfusion.data": json.dumps(record)}
    path = write_model(tmp_path / "m.onnx", external_data=True, properties=properties)
    read_onnx(path).verify_data()
    assert read_for_build(path).data_files == (DATA,)


@pytest.mark.parametrize("text", ["{", "[]", '{"file": "x"}', '{"file": "x", "size": "y"}'])
def test_a_record_that_is_none_is_refused(tmp_path, text):
    path = write_model(tmp_path / "m.onnx", properties={"rainfusion.data": text})
    with pytest.raises(InvalidInputError, match=r"metadata rainfusion\.data.*export it again$"):
        read_onnx(path)


def test_weights_inside_the_graph_have_no_record(exported):
    assert read_onnx(exported).account.data is None


@pytest.fixture
def exported(tmp_path) -> Path:
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    return export_model(MODEL, transformer, MODEL.tiny_size, output=tmp_path / "m.onnx").path


def test_a_hash_is_kept_until_the_file_is_touched(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    hashed = []
    monkeypatch.setattr(hashing, "file_sha256", lambda p: hashed.append(p) or file_sha256(p))
    first = kept_sha256(path)
    assert kept_sha256(path) == first and len(hashed) == 2  # too fresh to be trusted
    later = path.stat().st_ctime_ns + 60_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: later)
    assert kept_sha256(path) == kept_sha256(path) == first and len(hashed) == 3
    stamps = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    assert kept_sha256(path) != first
