"""Keeps what TensorRT for RTX compiles for a GPU beside the engine, so that it is done once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from rainfusion_trt.engine.folder import CACHE_FILE
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.staging import staging

_log = logging.getLogger(__name__)


class RuntimeCache:
    """Kernels that TensorRT for RTX compiled, in a file of the engine's folder.

    TensorRT itself checks that the file fits GPU, driver and version, and ignores it if not. A
    folder that cannot be read or written costs the compilation each time and is no error.

    Parameters
    ----------
    folder : Path
        The engine's folder.
    config : IRuntimeConfig
        Gets the cache, before the execution context is made from it.
    """

    def __init__(self, folder: Path, config: Any) -> None:
        self._file = folder / CACHE_FILE
        self._cache = config.create_runtime_cache()
        self._saved = b""
        content = self._read()
        if content and self._cache.deserialize(content):
            self._saved = content
        elif content is not None:
            _log.info("%s is of another GPU, driver or version: compiling again", self._file)
        config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the file if there is something new to write."""
        content = bytes(self._cache.serialize())
        if content == self._saved:
            return
        try:
            self._file.parent.stat()  # a folder that is gone is not made again
            with staging(self._file) as stage:
                (stage.new / CACHE_FILE).write_bytes(content)
                stage.publish()
        except (InvalidInputError, OSError) as error:
            _log.info("cannot keep compiled kernels in %s: %s", self._file, error)
            return
        self._saved = content

    def _read(self) -> bytes | None:
        """The file's content; None without a file that can be read."""
        try:
            return self._file.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.info("cannot read compiled kernels in %s: %s", self._file, error)
            return None
