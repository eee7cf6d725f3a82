"""Sparsity per step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.runtime.schedule import SparsitySchedule, sparsity_per_step, summary
from rainfusion_trt.runtime.steps import StepClock, StepRun


@pytest.mark.parametrize(
    ("steps", "dense"), [(1, 1), (9, 1), (10, 1), (11, 2), (30, 3), (50, 5), (100, 10)]
)
def test_default_is_half_after_a_dense_tenth(steps, dense):
    values = sparsity_per_step(SparsitySchedule(), steps)
    assert values == (0.0,) * dense + (0.5,) * (steps - dense)


@given(st.integers(1, 200), st.integers(0, 100), st.floats(0, 0.999))
def test_dense_steps_are_the_share_rounded_up(steps, percent, sparsity):
    values = sparsity_per_step(SparsitySchedule(sparsity, percent / 100), steps)
    dense = -(-percent * steps // 100)  # exact in integers
    assert len(values) == steps
    assert values == (0.0,) * dense + (sparsity,) * (steps - dense)


def test_functions_and_sequences():
    assert sparsity_per_step(lambda step, steps: step / steps, 4) == (0.0, 0.25, 0.5, 0.75)
    assert sparsity_per_step([0, 0.5], 2) == (0.0, 0.5)


@pytest.mark.parametrize("value", [1.0, -0.1, float("nan"), float("inf"), "0.5", None, True])
def test_values_outside_are_refused(value):
    with pytest.raises(InvalidInputError, match="sparsity"):
        SparsitySchedule(value)
    with pytest.raises(InvalidInputError, match="sparsity of step 1"):
        sparsity_per_step([0.0, value], 2)


def test_summary():
    assert summary((0.0,) * 5 + (0.5,) * 45) == "5 x 0, 45 x 0.5"
    assert summary([i / 100 for i in range(50)]) == "50 steps, 0 to 0.49"


@pytest.mark.parametrize("calls", [1, 2])
def test_calls_of_the_transformer_in_a_step_share_its_sparsity(calls):
    """Guidance as one call of batch 2, or as two calls."""
    seen = []
    pipe = SimpleNamespace(num_timesteps=3)
    clock = StepClock(torch.device("cpu"))
    run = StepRun(pipe, [0.0, 0.25, 0.5], seen.append, clock=clock)
    for step in range(3):
        for _ in range(calls):
            run.before_call()
            run.after_call()
        tensors = {"latents": torch.zeros(1)}
        assert run.on_step_end(pipe, step, 999, tensors) is tensors
    assert seen == [0.0, 0.25, 0.5]
    assert [row.sparsity for row in run.timings()] == [0.0, 0.25, 0.5]
    assert all(0 < row.transformer_ms < row.total_ms for row in run.timings())


def test_dense_backends_are_recorded_as_dense():
    pipe = SimpleNamespace(num_timesteps=2)
    run = StepRun(pipe, [0.1, 0.5], lambda value: None, sparse=False)
    run.before_call()
    run.on_step_end(pipe, 0, 999, {})
    assert run.values == (0.0,)
