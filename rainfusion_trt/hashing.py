"""SHA-256 of files and of JSON."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# A file changed this shortly before it was looked at could change again within one tick of the
# file system's clock, so its hash is not kept (git treats its index the same way).
CLOCK_TICK_NS = 2_000_000_000

_kept: dict[Path, tuple[tuple[int, ...], str]] = {}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def kept_sha256(path: Path) -> str:
    """:func:`file_sha256`, computed once in a process while the file is not touched.

    Untouched means the same size, modification time, change time and inode; unlike the
    modification time, the change time cannot be set by programs.
    """
    path = path.resolve()
    state = path.stat()
    stamps = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    known = _kept.get(path)
    if known is not None and known[0] == stamps:
        return known[1]
    sha256 = file_sha256(path)
    if time.time_ns() - state.st_ctime_ns >= CLOCK_TICK_NS:
        _kept[path] = (stamps, sha256)
    return sha256


def json_sha256(values: Mapping[str, Any]) -> str:
    """SHA-256 of a JSON object, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
