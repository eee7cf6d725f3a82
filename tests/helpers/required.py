"""What ``scripts/test.sh`` installs beside the environment; elsewhere a reason to skip a test."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

LISTS = Path(__file__).parents[1] / "requirements"


def aside(name: str) -> Path:
    """The folder with the packages of ``tests/requirements/<name>.txt``.

    Without them the test is skipped, and in continuous integration, which has everything, it fails.
    """
    wanted = (LISTS / f"{name}.txt").read_text()
    folder = Path(sys.prefix) / "aside" / name
    installed = folder / "requirements.txt"
    if installed.is_file() and installed.read_text() == wanted:
        return folder
    reason = f"{folder} does not hold {', '.join(wanted.split())}, as after scripts/test.sh"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
