"""Lazy packages show type checkers the names that they give at run time."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "package", ["rainfusion_trt", "rainfusion_trt.engine", "rainfusion_trt.export"]
)
def test_typed_names(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    blocks = [
        node
        for node in tree.body
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    ]
    (block,) = blocks
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        for name in statement.names:
            assert name.asname == name.name  # re-exported, as the typing specification has it
            seen[name.name] = statement.module
    given = {name: getattr(module, name) for name in module._EXPORTS}
    assert sorted(seen) == sorted(given)
    for name, value in given.items():
        assert getattr(importlib.import_module(seen[name]), name) is value
