"""Packages whose public names are imported on first use."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(
    package: str, exports: Mapping[str, str], renamed: Mapping[str, str] | None = None
) -> Callable[[str], Any]:
    """A package's ``__getattr__``: each name comes from the module of `package` it is mapped to.

    Reading an engine's metadata then does not import torch, nor the command line's help diffusers.
    `renamed` maps old names to present ones; an old name warns once.
    """

    def getattr_(name: str) -> Any:
        present = (renamed or {}).get(name, name)
        if present not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if present != name:
            warnings.warn(f"{package}.{name} is now {present}", FutureWarning, stacklevel=2)
        value = getattr(importlib.import_module(f"{package}.{exports[present]}"), present)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_
