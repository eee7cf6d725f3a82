"""``--module package.mod:factory`` and what goes with it, read from the command line's words."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from rainfusion_trt.errors import InvalidInputError


def make_module(name: str) -> tuple[nn.Module, Mapping[str, Any]]:
    """Call the factory and take the module and its example keyword arguments.

    Raises
    ------
    InvalidInputError
        No such factory, or it gives something else. What it raises itself goes through.
    """
    package, colon, attribute = name.partition(":")
    if not (package and colon and attribute):
        raise InvalidInputError(
            f"--module {name!r} must be package.module:factory, a function without parameters that "
            "gives a torch module and its example keyword arguments"
        )
    with _working_directory_importable():
        try:
            found = importlib.import_module(package)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{package}.".startswith(f"{error.name}."):
                raise  # an import inside it
            raise InvalidInputError(
                f"--module {name!r}: there is no module {error.name!r} here or on PYTHONPATH"
            ) from error
        factory = getattr(found, attribute, None)
        if not callable(factory):
            raise InvalidInputError(f"--module {name!r}: {package} has no function {attribute!r}")
        made = factory()
    is_pair = isinstance(made, tuple) and len(made) == 2
    if not (is_pair and isinstance(made[0], nn.Module) and isinstance(made[1], Mapping)):
        raise InvalidInputError(
            f"--module {name!r} gives {type(made).__name__}, expected a pair: a torch module and a "
            "dictionary of example keyword arguments"
        )
    return made


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """As with ``python -m``: a script only finds what lies beside it."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)


def parse_grid(text: str | None) -> tuple[int, int, int]:
    """``T,H,W`` as numbers."""
    parts = (text or "").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() for part in parts):
        raise InvalidInputError(
            f"--grid {text!r} must be T,H,W, the token grid after patching, such as 13,30,45"
            if text
            else "--module needs --grid T,H,W, the token grid after patching, such as 13,30,45"
        )
    frames, height, width = (int(part) for part in parts)
    return frames, height, width
