"""What ``scripts/test.sh`` installs for the tests: elsewhere a reason to skip one."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def lacks(what: str) -> NoReturn:
    """Skip the test, or fail it in continuous integration, which has everything."""
    reason = f"{what}; `bash scripts/test.sh` installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
