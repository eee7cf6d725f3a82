"""Problems that ask the kernels for blocks of another shape than the default."""

from __future__ import annotations

from typing import Any

import pytest

from rainfusion_trt.operator import native
from rainfusion_trt.operator.geometry import BlockShape


def ask_for(monkeypatch: pytest.MonkeyPatch, blocks: tuple[int, int]) -> BlockShape:
    """Every problem of the test asks for these blocks, which are given back as their shape."""
    default_problem = native.Problem.of

    def problem_of(*args: Any, **kwargs: Any) -> native.Problem:
        problem = default_problem(*args, **kwargs)
        problem.block_q, problem.block_k = blocks
        return problem

    monkeypatch.setattr(native.Problem, "of", problem_of)
    return BlockShape(*blocks)
