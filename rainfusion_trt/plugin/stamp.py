"""The file beside a built library that says what it was built from and what was built."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rainfusion_trt.hashing import file_sha256


class Stamp(BaseModel):
    """What a build was made from, and the hashes of its files.

    Attributes
    ----------
    sources
        See `rainfusion_trt.plugin.build.source_hash`.
    architectures
        As CMake writes them.
    version
        Of this package.
    files
        File name -> SHA-256.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["rainfusion-trt plugin"] = "rainfusion-trt plugin"
    sources: str
    architectures: str
    version: str
    files: dict[str, str]

    def names(self, path: Path) -> bool:
        """Whether a file is as it was built."""
        return path.is_file() and self.files.get(path.name) == file_sha256(path)

    def is_met(self, folder: Path) -> bool:
        """Whether all files in a folder are as they were built."""
        return all(self.names(folder / name) for name in self.files)


def stamp_file(library: Path) -> Path:
    """Path of a library's stamp."""
    return library.with_name(library.name + ".json")


def read_stamp(library: Path) -> Stamp | None:
    """The stamp of a library; None where it is missing, damaged or of an older version."""
    try:
        return Stamp.model_validate_json(stamp_file(library).read_bytes())
    except (OSError, ValidationError):
        return None


def write_stamp(
    folder: Path,
    library: Path,
    names: Iterable[str],
    *,
    sources: str,
    architectures: str,
    version: str,
) -> None:
    """Write the stamp of `library` into `folder`, which holds the files called `names`."""
    files = {name: file_sha256(folder / name) for name in names}
    stamp = Stamp(sources=sources, architectures=architectures, version=version, files=files)
    text = stamp.model_dump_json(indent=2) + "\n"
    (folder / stamp_file(library).name).write_text(text, encoding="utf-8")
