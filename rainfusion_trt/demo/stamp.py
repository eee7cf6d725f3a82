"""The file beside an exported demo model that says what it was exported from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.staging import staging

_FORMAT = "rainfusion-trt demo"
_KEYS_OF_0_2 = {"transformer", "exporter", "versions"}
_HEAD = 4096  # bytes


def stamp_file(path: Path) -> Path:
    """Path of a model's stamp."""
    return path.with_suffix(".json")


def check_stamp(path: Path) -> None:
    """Refuse a model whose stamp could not be written, or would replace a file of other origin."""
    check_file(stamp_file(path), ours=_is_ours)


def is_stamped(path: Path, facts: Mapping[str, str]) -> bool:
    """Whether a model was exported from what `facts` say."""
    return _read(stamp_file(path)).get("facts") == facts


def is_cut(path: Path) -> bool:
    """Whether a model is a part of the one that was stamped: its beginning."""
    known, size = _read(stamp_file(path)), path.stat().st_size
    if not isinstance(known.get("size"), int) or size >= known["size"]:
        return False
    return size == 0 or (size >= _HEAD and _head(path) == known.get("head"))


def write_stamp(path: Path, facts: Mapping[str, str]) -> None:
    """Say that a model was exported from `facts`."""
    stamp = {
        "format": _FORMAT,
        "facts": dict(facts),
        "size": path.stat().st_size,
        "head": _head(path),
    }
    with staging(stamp_file(path)) as stage:
        (stage.new / stamp_file(path).name).write_text(json.dumps(stamp), encoding="utf-8")
        stage.publish()


def _head(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(_HEAD)).hexdigest()


def _read(stamp: Path) -> dict[str, Any]:
    """What a stamp says; nothing where it is missing or damaged."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_ours(stamp: Path) -> bool:
    """Whether a stamp was written by this demo, or there is nothing in it."""
    if stamp.read_bytes().strip() in (b"", b"{}"):
        return True
    found = _read(stamp)
    return found.get("format") == _FORMAT or found.keys() == _KEYS_OF_0_2
