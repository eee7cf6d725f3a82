"""Whether a shared library is whole: the loader ends the process if the end of one is missing."""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct("<4sBB10x16xQQ4xHHHHHH")  # of a 64-bit little-endian file
_SEGMENT = struct.Struct("<4x4xQ16xQ16x")


def is_whole(path: Path) -> bool:
    """Whether a file is a 64-bit ELF file with all of its segments and section headers.

    The section headers are the last that linkers write, so that no file that was cut has them.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return False
            magic, width, order, segments, sections, _, segment, count, section, total, _ = (
                _HEADER.unpack(header)
            )
            if (magic, width, order) != (b"\x7fELF", 2, 1):
                return False
            if max(segments + segment * count, sections + section * total) > size:
                return False
            if count and segment < _SEGMENT.size:
                return False
            file.seek(segments)
            table = file.read(segment * count)
    except OSError:
        return False
    for start in range(0, len(table), segment or 1):
        offset, length = _SEGMENT.unpack_from(table, start)
        if offset + length > size:
            return False
    return True
