"""Tests of the service need the extra ``serve``."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

_MISSING = [name for name in ("ray", "sqlalchemy", "openai") if not importlib.util.find_spec(name)]
if _MISSING and not os.environ.get("CI"):
    collect_ignore_glob = ["test_*.py"]  # in continuous integration their imports fail


def pytest_report_header() -> list[str]:
    if not _MISSING:
        return []
    return [f"tests/serve is left out without {', '.join(_MISSING)}: pip install '.[serve,test]'"]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Any]:
    from helpers.serve_running import make_running

    made = make_running(tmp_path)
    yield made
    made.service.store.close()
