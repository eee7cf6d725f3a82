"""Damage for fuzzers, and what must hold whatever is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from rainfusion_trt.console import explain
from rainfusion_trt.errors import RainFusionError

_FACTOR = int(os.environ.get("RAINFUSION_FUZZ", "0"))

TEXTS = st.one_of(
    st.sampled_from(["", "[/red]", "\x1b[2J", "\ud800", "../../x", "/etc/passwd", "nan", "-1"]),
    st.text(max_size=8),
)
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e300]),
    st.sampled_from([float("nan"), float("inf"), float("-inf")]),
    st.integers(-5, 200),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)


def bounded(examples: int) -> settings:
    """Settings of a fuzzer that runs this many examples, always the same ones.

    With ``RAINFUSION_FUZZ=50`` in the environment it runs fifty times as many, chosen anew.
    """
    return settings(
        max_examples=examples * max(1, _FACTOR),
        derandomize=not _FACTOR,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes changed, left out or put in, or the end cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "insert", "delete", "cut"]))
        if kind == "cut":
            del data[place:]
        elif kind == "delete":
            del data[place : place + draw(st.integers(1, 9))]
        else:
            new = draw(st.binary(min_size=1, max_size=4))
            data[place : place + (len(new) if kind == "change" else 0)] = new
    return bytes(data)


@st.composite
def damaged_json(draw: st.DrawFn, content: Any) -> Any:
    """A value of a JSON document replaced, removed or added at any depth."""
    if isinstance(content, dict) and content and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(content)))
        kind = draw(st.sampled_from(["inside", "inside", "inside", "remove", "add"]))
        if kind == "remove":
            return {name: value for name, value in content.items() if name != key}
        if kind == "add":
            return {**content, draw(TEXTS): draw(VALUES)}
        return {**content, key: draw(damaged_json(content[key]))}
    if isinstance(content, list) and content and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(content) - 1))
        changed = [draw(damaged_json(content[place]))] * draw(st.integers(0, 2))
        return [*content[:place], *changed, *content[place + 1 :]]
    return draw(VALUES)


def refused_or_fine(function: Callable[[], Any]) -> Any:
    """What a call gives; None where it refuses with one line. Any other exception is raised."""
    try:
        return function()
    except RainFusionError as error:
        line = explain(error)
        assert line and line.isprintable(), repr(error)
        return None


@contextmanager
def nothing_written(folder: Path) -> Iterator[None]:
    """A context in which no file of a folder may change, come or go."""
    before = _state(folder)
    yield
    assert _state(folder) == before


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}
