"""Packages whose public names are imported on first use."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def on_first_use(package: str, exports: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's ``__getattr__``: each name comes from the module of `package` it is mapped to.

    Reading an engine's metadata then does not import torch, nor the command line's help diffusers.
    """

    def getattr_(name: str) -> Any:
        if name not in exports:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{package}.{exports[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_
