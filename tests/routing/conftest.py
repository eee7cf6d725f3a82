"""What tests of every class need."""

from __future__ import annotations

import pytest

from helpers.cosmos_resize import resizing


@pytest.fixture(autouse=True)
def _resizing():
    with resizing():
        yield
