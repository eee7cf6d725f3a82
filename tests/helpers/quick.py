"""The mark ``quick``: a test on a GPU for each kernel, method, precision, type and head size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def with_a_quick_one(values: Iterable[str], quick: str) -> list[Any]:
    """Values of a parameter, one of them with the mark."""
    return [pytest.param(x, marks=pytest.mark.quick) if x == quick else x for x in values]
