"""What torch.compile of PyTorch 2.9 cannot trace, and that of CI can."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import rainfusion_trt

PACKAGE = Path(rainfusion_trt.__file__).parent
FILES = sorted(path for part in ("operator", "routing") for path in (PACKAGE / part).rglob("*.py"))


class _Pair(NamedTuple):
    a: int

    @property
    def total(self) -> int:
        return self.a


def lenient_zips(text: str) -> list[int]:
    """Lines with a zip that is not strict: it takes ``strict=False`` for True."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "zip"
        and not any(k.arg == "strict" and ast.literal_eval(k.value) for k in node.keywords)
    ]


def properties_of_tuples(module) -> list[str]:
    """Properties of NamedTuples, which it cannot read; it calls their methods."""
    return [
        f"{kind.__name__}.{name}"
        for kind in vars(module).values()
        if isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")
        for name, value in vars(kind).items()
        if isinstance(value, property)
    ]


def test_nothing_of_it_is_in_what_is_traced():
    zips = {str(path): lenient_zips(path.read_text(encoding="utf-8")) for path in FILES}
    assert len(zips) > 20 and {path: lines for path, lines in zips.items() if lines} == {}
    found = []
    for path in FILES:
        name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
        found += properties_of_tuples(importlib.import_module(name.removesuffix(".__init__")))
    assert found == []


def test_it_is_noticed():
    assert lenient_zips("zip(a, b, strict=True)\nzip(a, b, strict=False)\nzip(a, b)") == [2, 3]
    assert properties_of_tuples(SimpleNamespace(Pair=_Pair)) == ["_Pair.total"]
