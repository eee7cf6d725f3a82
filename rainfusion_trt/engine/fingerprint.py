"""Tells whether an engine is up to date: one hash over everything that matters."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from rainfusion_trt.engine.metadata import FileRecord
from rainfusion_trt.hashing import CLOCK_TICK_NS, file_sha256, json_sha256

digest = json_sha256


def record_files(
    folder: Path, names: Iterable[str], known: Iterable[FileRecord] = ()
) -> tuple[FileRecord, ...]:
    """Hash the files of a model, reusing earlier hashes of files that were not touched since.

    A file counts as untouched when its size, modification time, change time and inode are the
    same; unlike the modification time, the change time cannot be set by programs.

    Parameters
    ----------
    folder : Path
        Folder of the files.
    names : iterable of str
        File names relative to it.
    known : iterable of FileRecord
        Records of an earlier build.
    """
    earlier = {record.name: record for record in known}
    return tuple(_record(folder / name, name, earlier.get(name)) for name in names)


def combined_sha256(records: Iterable[FileRecord]) -> str:
    """One hash over names and contents of the files."""
    return digest({record.name: record.sha256 for record in records})


def _record(path: Path, name: str, known: FileRecord | None) -> FileRecord:
    state = path.stat()
    stamps = {
        "size": state.st_size,
        "mtime_ns": state.st_mtime_ns,
        "ctime_ns": state.st_ctime_ns,
        "inode": state.st_ino,
    }
    if known is not None and all(getattr(known, key) == value for key, value in stamps.items()):
        return known
    sha256 = file_sha256(path)
    if time.time_ns() - state.st_ctime_ns < CLOCK_TICK_NS:
        stamps["ctime_ns"] = -1  # never equal to a real one: hashed again next time
    return FileRecord(name=name, sha256=sha256, **stamps)
