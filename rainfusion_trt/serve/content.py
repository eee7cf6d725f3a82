"""Where videos and images lie: a folder, or any file system that fsspec knows."""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rainfusion_trt.errors import InvalidInputError

_PIECE = 1 << 20


class Content(Protocol):
    """Files by key. Keys are made of ids of jobs, see `rainfusion_trt.serve.jobs`."""

    def put(self, key: str, source: Path) -> int:
        """Keep a file, which appears whole or not at all; its size in bytes."""

    def path(self, key: str) -> Path | None:
        """The file where it lies on this machine; None where it does not."""

    def read(self, key: str) -> Iterator[bytes]:
        """The file in pieces.

        Raises
        ------
        FileNotFoundError
            There is none; raised before the first piece is asked for.
        """

    def delete(self, key: str) -> None:
        """Remove the file, if there is one."""


class Folder:
    """Files in a folder of this machine, or of one that all machines mount."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, source: Path) -> int:
        part = self._folder / f".{key}.{uuid.uuid4().hex}.part"
        try:
            with source.open("rb") as given, part.open("wb") as kept:
                shutil.copyfileobj(given, kept, _PIECE)
                kept.flush()
                os.fsync(kept.fileno())
            size = part.stat().st_size
            part.replace(self._folder / key)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return size

    def path(self, key: str) -> Path | None:
        return self._folder / key

    def read(self, key: str) -> Iterator[bytes]:
        return _pieces((self._folder / key).open("rb"))

    def delete(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)


class Remote:
    """Files below a URL such as ``s3://bucket/videos``, by fsspec and its package for that."""

    def __init__(self, url: str) -> None:
        import fsspec

        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise InvalidInputError(f"content {url} cannot be used: {error}") from error
        self._lock = threading.Lock()

    def put(self, key: str, source: Path) -> int:
        # A file appears, whole, at the end of fsspec's transaction: there is one at a time.
        with (
            self._lock,
            self._fs.transaction,
            source.open("rb") as given,
            self._fs.open(self._at(key), "wb") as kept,
        ):
            shutil.copyfileobj(given, kept, _PIECE)
        return source.stat().st_size

    def path(self, key: str) -> Path | None:
        return None

    def read(self, key: str) -> Iterator[bytes]:
        return _pieces(self._fs.open(self._at(key), "rb"))

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(key))

    def _at(self, key: str) -> str:
        return f"{self._root.rstrip('/')}/{key}"


def open_content(place: str) -> Content:
    """The files at a path or a URL.

    Raises
    ------
    InvalidInputError
        fsspec does not know the URL, or needs a package for it.
    """
    place = place.removeprefix("file://")
    return Remote(place) if "://" in place else Folder(Path(place))


def _pieces(file: Any) -> Iterator[bytes]:
    with file:
        while piece := file.read(_PIECE):
            yield piece
