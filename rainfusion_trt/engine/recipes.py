"""The engine recipes that come with the project, by name."""

from __future__ import annotations

from pathlib import Path

from rainfusion_trt import places
from rainfusion_trt.errors import InvalidInputError


def shipped_recipes() -> dict[str, Path]:
    """The YAML files of ``engines/`` by their names without the suffix."""
    root = places.repository()
    files = (root / "engines").glob("*.yaml") if root is not None else ()
    return {file.stem: file for file in sorted(files)}


def find_recipe(name: str | Path) -> Path:
    """Find the YAML file that a path, or a name such as ``cogvideox-5b``, stands for.

    Raises
    ------
    InvalidInputError
        It is no file and no such name; the message lists the names.
    """
    path = Path(name)
    if path.exists() and not path.is_dir():
        return path
    recipes = shipped_recipes()
    if str(name) in recipes:
        return recipes[str(name)]
    raise InvalidInputError(
        f"engine recipe {name} is neither a file nor one of the recipes that come with the "
        f"project: {', '.join(recipes) or 'none was found'}"
    )
