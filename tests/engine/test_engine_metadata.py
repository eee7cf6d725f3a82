"""metadata.json: round trip, and every way an engine folder can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from rainfusion_trt.engine import fingerprint
from rainfusion_trt.engine.metadata import (
    EngineMetadata,
    PluginRecord,
    TensorRecord,
    load_metadata,
    save_metadata,
)
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange
from rainfusion_trt.errors import EngineLoadError

PLAN = b"a serialised engine"


@pytest.fixture
def metadata() -> EngineMetadata:
    shapes = ShapeRange(min=(1, 8), opt=(2, 8), max=(2, 8))
    return EngineMetadata(
        model="cogvideox-5b",
        config={"num_layers": 2},
        size="9x64x96",
        settings={"method": "rainfusion"},
        precision="float16",
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        targets=("sm80", "sm120"),
        device=None,
        profiles=("tiny",),
        builder=BuilderSettings(optimization_level=2),
        inputs=(TensorRecord(name="x", dtype="float16", shape=(-1, 8), profiles={"tiny": shapes}),),
        outputs=(TensorRecord(name="sample", dtype="float16", shape=(-1, 8)),),
        plugin=PluginRecord(file="librainfusion_trt.so", sha256="0" * 64, build="0.1.0 sm_80"),
        plugin_layers=2,
        onnx="m.onnx",
        onnx_sha256="1" * 64,
        onnx_files=(),
        key="2" * 64,
        engine_size=len(PLAN),
        engine_sha256=hashlib.sha256(PLAN).hexdigest(),
        date="2026-01-01T00:00:00+00:00",
        build_seconds=1.5,
        command="rainfusion-trt build-engine",
    )


@pytest.fixture
def folder(tmp_path, metadata):
    folder = tmp_path / "m.engine"
    folder.mkdir()
    (folder / "engine.plan").write_bytes(PLAN)
    save_metadata(folder, metadata)
    return folder


def test_round_trip(folder, metadata):
    assert load_metadata(folder) == metadata


@pytest.mark.parametrize("name", ["metadata.json", "engine.plan"])
def test_file_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(EngineLoadError, match=f"no {name}.*build-engine"):
        load_metadata(folder)


def test_truncated(folder):
    (folder / "engine.plan").write_bytes(PLAN[:-1])
    with pytest.raises(EngineLoadError, match="has 18 bytes, metadata.json says 19"):
        load_metadata(folder)


def test_flipped_bit(folder):
    (folder / "engine.plan").write_bytes(bytes([PLAN[0] ^ 1]) + PLAN[1:])
    with pytest.raises(EngineLoadError, match="does not match the hash"):
        load_metadata(folder)
    assert load_metadata(folder, verify=False).engine_size == len(PLAN)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"plugin_layers": "many"}, "plugin_layers"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
)
def test_foreign_metadata(folder, change, words):
    file = folder / "metadata.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(EngineLoadError, match=f"{words}.*build the engine again"):
        load_metadata(folder)


def test_metadata_is_no_json(folder):
    (folder / "metadata.json").write_text("{")
    with pytest.raises(EngineLoadError, match=r"metadata\.json cannot be read"):
        load_metadata(folder)


# -- what tells that nothing changed ---------------------------------------------------------------


def aged(path, seconds=60):
    """Records are trusted only if the file is older than a clock tick: pretend that it is."""
    return path.stat().st_ctime_ns + seconds * 1_000_000_000


@pytest.fixture
def hashed(monkeypatch):
    """Names of the files that were hashed."""
    names = []
    original = fingerprint.file_sha256
    monkeypatch.setattr(
        fingerprint, "file_sha256", lambda path: names.append(path.name) or original(path)
    )
    return names


def test_untouched_files_are_not_hashed_again(tmp_path, hashed, monkeypatch):
    (tmp_path / "a").write_bytes(b"1")
    monkeypatch.setattr(time, "time_ns", lambda: aged(tmp_path / "a"))
    first = fingerprint.record_files(tmp_path, ["a"])
    assert fingerprint.record_files(tmp_path, ["a"], first) == first
    assert hashed == ["a"]


def test_change_with_the_old_size_and_time_is_seen(tmp_path, monkeypatch):
    file = tmp_path / "a"
    file.write_bytes(b"1")
    state = file.stat()
    monkeypatch.setattr(time, "time_ns", lambda: aged(file))
    first = fingerprint.record_files(tmp_path, ["a"])
    time.sleep(0.02)  # more than a tick of the kernel's clock
    file.write_bytes(b"2")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = fingerprint.record_files(tmp_path, ["a"], first)
    assert fingerprint.combined_sha256(first) != fingerprint.combined_sha256(second)


def test_fresh_files_are_hashed_again(tmp_path, hashed):
    (tmp_path / "a").write_bytes(b"1")
    first = fingerprint.record_files(tmp_path, ["a"])
    fingerprint.record_files(tmp_path, ["a"], first)
    assert hashed == ["a", "a"]


def test_combined_hash_depends_on_every_file(tmp_path):
    def combined(a, b):
        (tmp_path / "a").write_bytes(a)
        (tmp_path / "b").write_bytes(b)
        return fingerprint.combined_sha256(fingerprint.record_files(tmp_path, ["a", "b"]))

    assert len({combined(b"1", b"2"), combined(b"2", b"1"), combined(b"1", b"1")}) == 3
    assert combined(b"1", b"2") == combined(b"1", b"2")
