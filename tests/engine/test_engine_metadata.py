"""metadata.json: round trip, and every way an engine folder can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import time

import pytest

from helpers.engine_folders import engine_metadata
from rainfusion_trt.engine import fingerprint
from rainfusion_trt.engine.metadata import (
    EngineMetadata,
    load_metadata,
    read_plan,
    save_metadata,
)
from rainfusion_trt.errors import EngineLoadError
from rainfusion_trt.hashing import json_sha256

PLAN = b"a serialised engine"


@pytest.fixture
def metadata() -> EngineMetadata:
    return engine_metadata(engine_size=len(PLAN), engine_sha256=hashlib.sha256(PLAN).hexdigest())


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


def changed(folder, *place, value, signed=True):
    """Change one value of metadata.json, with its hash or without."""
    file = folder / "metadata.json"
    content = json.loads(file.read_text())
    del content["sha256"]
    *parents, last = place
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    content["sha256"] = json_sha256(content) if signed else "0" * 64
    file.write_text(json.dumps(content))


def refusal(folder) -> str:
    with pytest.raises(EngineLoadError) as error:
        load_metadata(folder)
    assert "\n" not in str(error.value) and "build the engine again" in str(error.value)
    return str(error.value)


SHAPES = ("inputs", 0, "profiles", "tiny")


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("targets",), [], "targets=[]: target is empty"),
        (("targets",), ["sm80", "sm80"], "names a compute capability twice"),
        (("targets",), ["8.0"], "'8.0' is neither native"),
        (("targets",), "sm80", "targets='sm80' must be a list"),
        (("profiles",), ["tiny", "tiny"], "profiles=['tiny', 'tiny']: names one twice"),
        (("profiles",), [], "x has an unknown profile 'tiny'"),
        (("profiles",), ["large"], "x has an unknown profile 'tiny'"),
        (("profiles",), ["tiny", "large"], "x has no shapes for the profile 'large'"),
        (("loras",), {}, "loras={} must be a list"),
        (("loras",), "style", "loras='style' must be a list"),
        (("loras",), [1], "loras.0"),
        (
            ("loras",),
            [{"file": "a", "scale": "1", "sha256": "b", "layers": 1}],
            "loras.0.scale='1' must be a number",
        ),
        (
            ("loras",),
            [{"file": "a", "scale": 1.0, "sha256": "b", "layers": -1}],
            "loras.0.layers=-1 must be 0 or more",
        ),
        (("engine_size",), "19", "engine_size='19' must be an integer"),
        (("engine_size",), -1, "engine_size=-1 must be 0 or more"),
        (("engine_size",), True, "engine_size=True must be an integer"),
        (("engine_sha256",), "x", "engine_sha256"),
        (("plugin_layers",), -1, "plugin_layers"),
        (("precision",), "float32", "precision='float32' must be 'float16' or 'bfloat16'"),
        (("precision",), "[/red]", "precision='[/red]' must be"),
        (("surprise",), 1, "(surprise is no field here: leave it out)"),
        (("builder", "surprise"), 1, "(builder.surprise is no field here: leave it out)"),
        (("flavour",), "tensorrt_lite", "flavour"),
        (("version",), "latest", "version"),
        (("size",), "0x64x96", "FRAMESxHEIGHTxWIDTH"),
        (("size",), "9" * 5000 + "x1x1", "FRAMESxHEIGHTxWIDTH"),
        (("settings",), {"alpha": 2}, "alpha=2"),
        (("config",), [], "config"),
        (("date",), "yesterday", "date: Invalid isoformat"),
        (("build_seconds",), float("nan"), "build_seconds"),
        (("build_seconds",), -1.0, "build_seconds"),
        (("inputs",), [], "an engine has inputs and outputs"),
        (("inputs", 0, "dtype"), "float15", "inputs.0.dtype"),
        (("inputs", 0, "name"), "sample", "two tensors have one name"),
        (("inputs", 0, "shape"), [-1, 9], "does not have the shapes of its profile 'tiny'"),
        (("inputs", 0, "shape"), [-1], "does not have the shapes of its profile 'tiny'"),
        (("inputs", 0, "shape"), [0, 8], "an extent is -1"),
        ((*SHAPES, "min"), [3, 8], "needs min <= opt <= max"),
        ((*SHAPES, "max"), [2], "differ in rank"),
        (("inputs", 0, "profiles"), {}, "x has no shapes for the profile 'tiny'"),
        (("outputs", 0, "profiles"), {"huge": {"min": [1], "opt": [1], "max": [1]}}, "'huge'"),
        (("plugin", "sha256"), "abc", "plugin.sha256"),
        (("builder", "optimization_level"), 9, "builder.optimization_level"),
    ],
)
def test_fields_are_of_their_type_and_range(folder, place, value, words):
    changed(folder, *place, value=value)
    assert words in refusal(folder)


def test_every_field_is_covered_by_the_hash(folder, metadata):
    """Another value that is as good as the right one, but for the hash."""
    changes = {
        "model": "cogvideox",
        "device": "a GPU",
        "version": "1.7.1.117",
        "targets": ["sm80"],
        "config": {"num_layers": 3},
        "command": "",
        "key": "3" * 64,
    }
    intact = (folder / "metadata.json").read_text()
    for name, value in changes.items():
        changed(folder, name, value=value, signed=False)
        assert "does not match its hash of itself" in refusal(folder)
        (folder / "metadata.json").write_text(intact)
    assert load_metadata(folder) == metadata


def test_metadata_without_a_hash(folder, metadata):
    (folder / "metadata.json").write_text(metadata.model_dump_json())
    assert "has no hash of itself" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"[" * 100_000, b"\xff\xfe{}", b'{"a":'])
def test_content_that_is_no_object(folder, content):
    (folder / "metadata.json").write_bytes(content)
    assert "metadata.json cannot be read" in refusal(folder)


def test_the_plan_is_hashed_and_returned_from_one_read(folder, metadata, monkeypatch):
    """The file changes as soon as it was read: what is used is what was hashed."""
    read = type(folder).read_bytes

    def read_once(path):
        content = read(path)
        path.write_bytes(b"another engine, now")
        return content

    assert len(b"another engine, now") == len(PLAN)
    monkeypatch.setattr(type(folder), "read_bytes", read_once)
    assert read_plan(folder, metadata) == PLAN
    with pytest.raises(EngineLoadError, match="does not match the hash"):
        read_plan(folder, metadata)


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
