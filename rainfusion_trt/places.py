"""Paths of the project's files, in a checkout and in an installed package."""

from __future__ import annotations

import os
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent
_MARK = "plugins/include/rainfusion/rainfusion.h"  # a name that is only ours


def repository() -> Path | None:
    """Directory of what is not Python: the C++ sources and the engine recipes.

    Returns
    -------
    Path or None
        The checkout this package is imported from, else ``_sources`` in the installed package,
        where setup.py puts the same files; None if there is neither.
    """
    for root in (CHECKOUT, PACKAGE / "_sources"):
        if (root / _MARK).is_file():
            return root
    return None


def cache_directory() -> Path:
    """Directory for files that may be thrown away: ``RAINFUSION_TRT_CACHE`` or the user's cache.

    Raises
    ------
    InvalidInputError
        The user has no home directory, or there is none of the user that the variable names.
    """
    chosen = os.environ.get("RAINFUSION_TRT_CACHE")
    if chosen:
        return expanded(chosen, "RAINFUSION_TRT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "rainfusion-trt"
    return expanded("~/.cache/rainfusion-trt", "RAINFUSION_TRT_CACHE")


def expanded(path: str, variable: str) -> Path:
    """A path with ``~`` and ``~user`` replaced, for which `variable` can give another."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InvalidInputError(
            f"there is no home directory for {path}: set {variable} to a path that begins with /"
        ) from error
