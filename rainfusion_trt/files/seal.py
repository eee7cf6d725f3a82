"""The end of a written file, which proves who wrote it and that nobody has changed it since."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

DIGITS = 2 * hashlib.sha256().digest_size
"""Length of the hash at the end."""


@dataclass(frozen=True)
class Seal:
    """Bytes that end a file: a start that names this package, and the hash of all before them.

    Attributes
    ----------
    start : bytes
        Together with the 64 hexadecimal digits that follow, something that readers of the file's
        format skip.
    """

    start: bytes

    def put_on(self, path: Path) -> None:
        """Append it to a file that is whole."""
        digest = _digest(path, path.stat().st_size)
        with path.open("ab") as file:
            file.write(self.start + digest)

    def is_on(self, path: Path) -> bool:
        """Whether a file is as it was when it was sealed."""
        length = len(self.start) + DIGITS
        size = path.stat().st_size
        if size <= length:
            return False
        with path.open("rb") as file:
            file.seek(size - length)
            end = file.read(length)
        return end.startswith(self.start) and _digest(path, size - length) == end[-DIGITS:]


def _digest(path: Path, size: int) -> bytes:
    """SHA-256 of the first `size` bytes of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, 1 << 20))):
            digest.update(chunk)
            size -= len(chunk)
    return digest.hexdigest().encode()
