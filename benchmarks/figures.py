"""Plots as files."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure


def save_png(figure: Figure, path: Path) -> Path:
    """Write a plot, whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    figure.savefig(temporary, format="png", dpi=90, pil_kwargs={"optimize": True})
    temporary.replace(path)
    return path
