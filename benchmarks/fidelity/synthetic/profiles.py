"""Published profiles: how many keys each head of a released model needs."""

from __future__ import annotations

import csv
import lzma
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

COLUMNS = ["Step", "Layer", "Head", "Sparsity"]


@dataclass(frozen=True)
class Group:
    """The heads of one layer in one step.

    Attributes
    ----------
    shares
        Per head, the least share of keys that holds 95 % of its softmax mass.
    """

    step: int
    layer: int
    shares: tuple[float, ...]


def profile_paths(folder: Path) -> list[Path]:
    """Every profile of a folder, by name."""
    paths = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.xz")])
    if not paths:
        raise FileNotFoundError(f"no profile (*.csv, *.csv.xz) in {folder}")
    return paths


def read_profile(path: Path) -> list[Group]:
    """All groups of a file, by step and layer."""
    opener = lzma.open if path.suffix == ".xz" else open
    shares: dict[tuple[int, int], dict[int, float]] = {}
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path.name} has the columns {reader.fieldnames}, not {COLUMNS}")
        for row in reader:
            key = int(row["Step"]), int(row["Layer"])
            shares.setdefault(key, {})[int(row["Head"])] = float(row["Sparsity"])
    return [
        Group(step, layer, tuple(heads[head] for head in sorted(heads)))
        for (step, layer), heads in sorted(shares.items())
    ]


def pick_groups(groups: Sequence[Group], number: int, heads: int, seed: int) -> list[Group]:
    """Groups drawn without regard to their heads, each cut to some heads drawn likewise."""
    draws = random.Random(seed)
    picked = draws.sample(list(groups), min(number, len(groups)))
    return [
        Group(g.step, g.layer, tuple(draws.sample(g.shares, min(heads, len(g.shares)))))
        for g in sorted(picked, key=lambda g: (g.step, g.layer))
    ]
