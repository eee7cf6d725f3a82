"""Paths of the project's files, in a checkout and in an installed package."""

from __future__ import annotations

import os
from pathlib import Path

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
    """Directory for files that may be thrown away: ``RAINFUSION_TRT_CACHE`` or the user's cache."""
    chosen = os.environ.get("RAINFUSION_TRT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "rainfusion-trt"
