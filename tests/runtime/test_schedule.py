"""Sparsity per step."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rainfusion_trt.errors import (
    DenseAttentionError,
    GenerationCancelled,
    InvalidInputError,
    NotFiniteError,
)
from rainfusion_trt.runtime.precision import PrecisionSchedule
from rainfusion_trt.runtime.report import CallReport, StepReport
from rainfusion_trt.runtime.schedule import (
    SparsitySchedule,
    read_schedule,
    sparsity_per_step,
    summary,
)
from rainfusion_trt.runtime.steps import StepClock, StepRun

CALL = {"hidden_states": torch.zeros(1, 3, 16, 8, 12)}


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
            run.before_call(CALL)
            run.after_call(CallReport(routed=2))
        tensors = {"latents": torch.zeros(1)}
        assert run.on_step_end(pipe, step, 999, tensors) is tensors
    assert seen == [0.0, 0.25, 0.5]
    assert [row.sparsity for row in run.timings()] == [0.0, 0.25, 0.5]
    assert all(0 < row.transformer_ms < row.total_ms for row in run.timings())


def test_pipelines_without_a_callback_are_followed_and_ended_too():
    """They call their scheduler once a step."""
    told, flag = [], threading.Event()

    def progress(done: int, steps: int) -> None:
        told.append((done, steps))
        if done == 2:
            flag.set()

    pipe = SimpleNamespace(num_timesteps=5, scheduler=_Scheduler())
    run = StepRun(pipe, [0.5] * 5, lambda value: None, progress=progress, cancel=flag)
    ended = pytest.raises(GenerationCancelled, match="after 2 steps")
    with ended, run.counting(by_callback=False) as arguments:
        assert arguments == {}
        for _ in range(5):
            run.before_call(CALL)
            run.after_call(CallReport(routed=1))
            pipe.scheduler.step(torch.zeros(1))
    assert told == [(0, 5), (1, 5), (2, 5)] and not vars(pipe.scheduler)


def test_processes_whose_calls_differ_look_at_a_flag_equally_often():
    """One half of guidance is nobody's where it is off: the second process makes no call then."""
    looks = []
    for calls in ((1, 1, 1), (1, 0, 2)):
        flag = SimpleNamespace(asked=0)
        flag.is_set = lambda flag=flag: setattr(flag, "asked", flag.asked + 1)
        pipe = SimpleNamespace(num_timesteps=3)
        clock = StepClock(torch.device("cpu"))
        run = StepRun(
            pipe, [0.5] * 3, lambda value: None, clock=clock, cancel=flag, same_calls=False
        )
        for step, count in enumerate(calls):
            for _ in range(count):
                run.before_call(CALL)
                run.after_call(CallReport(routed=1))
            run.on_step_end(pipe, step, 999, {"latents": torch.zeros(1)})
        looks.append(flag.asked)
        made = [step for step, count in enumerate(calls) if count]
        assert [row.step for row in run.timings()] == made
        assert [row.step for row in run.reports()] == made
    assert looks == [3, 3]


class _Scheduler:
    def step(self, value):
        return (value,)


@pytest.mark.parametrize("left_out", [0, 1])
def test_every_segment_of_a_clip_has_the_schedule(left_out):
    """Also where a pipeline has one timestep more than steps, as that of long LTX-Videos has."""
    seen, told = [], []
    pipe = SimpleNamespace(num_timesteps=3, scheduler=SimpleNamespace())
    run = StepRun(
        pipe,
        SparsitySchedule(0.5, dense_fraction=0.1),
        seen.append,
        clock=StepClock(torch.device("cpu")),
        progress=lambda *done: told.append(done),
    )
    steps = 3 - left_out
    for _ in range(2):
        pipe.scheduler.timesteps = torch.tensor([999.0, 600.0, 300.0])
        for step in range(steps):
            for _ in range(2):
                run.before_call(CALL)
                run.after_call(CallReport(routed=2))
            run.on_step_end(pipe, step, 999, {"latents": torch.zeros(1)})
    wanted = [0.0, 0.5, 0.5][:steps] * 2
    assert seen == wanted
    assert [(ran.step, ran.sparsity) for ran in run.reports()] == list(enumerate(wanted))
    assert [(row.step, row.sparsity) for row in run.timings()] == list(enumerate(wanted))
    first = [(done, 3) for done in range(steps + 1)]
    assert told == first + [(steps + done, steps + 3) for done in range(steps + 1)]


class _LongVideo:
    """Takes steps as LTXI2VLongMultiPromptPipeline does, which leaves out those above a sigma."""

    num_timesteps = 4
    scheduler = SimpleNamespace()

    def __call__(self, skip_steps_sigma_threshold=1):
        """Its calls have this argument."""

    def run(self, run, left_out, latent=0.0):
        self.scheduler.timesteps = torch.tensor([1000.0, 900.0, 600.0, 300.0])
        for step, timestep in enumerate(self.scheduler.timesteps[:-1]):
            if step < left_out:
                continue
            self.current_timestep = timestep
            moment = run.before_call(CALL)
            assert moment[:2] == (step, 4) and moment.never == 1
            run.after_call(CallReport(routed=2))
            run.on_step_end(self, step, timestep, {"latents": torch.full((1,), latent)})


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_steps_that_are_left_out_at_the_start_of_a_segment_count(left_out):
    seen, pipe = [], _LongVideo()
    told = []
    run = StepRun(
        pipe,
        [0.1, 0.2, 0.3, 0.4],
        seen.append,
        precision=PrecisionSchedule(last=0.3),
        set_precision=told.append,
        clock=StepClock(torch.device("cpu")),
    )
    for _ in range(2):
        pipe.run(run, left_out)
    assert told == ["8bit", "8bit", "16bit"][left_out:] * 2  # the last is the last that runs
    assert seen == [0.1, 0.2, 0.3][left_out:] * 2
    made = [*range(left_out, 3), *range(3 + left_out, 6)]
    assert [ran.step for ran in run.reports()] == [row.step for row in run.timings()] == made


def test_latents_are_looked_at_after_the_last_step_that_runs():
    pipe = _LongVideo()
    run = StepRun(pipe, [0.1, 0.2, 0.3, 0.4], lambda value: None)
    with pytest.raises(NotFiniteError):
        pipe.run(run, 0, latent=torch.nan)


def test_dense_backends_are_recorded_as_dense():
    pipe = SimpleNamespace(num_timesteps=2)
    run = StepRun(pipe, [0.1, 0.5], lambda value: None, sparse=False)
    run.before_call(CALL)
    run.after_call(CallReport(routed=0, dense=2))
    run.on_step_end(pipe, 0, 999, {})
    assert run.reports() == (StepReport(step=0, sparsity=0.0, routed=0, dense=2, density=1.0),)


def test_iterators_arrays_and_tensors_are_schedules():
    wanted = (0.0, 0.25, 0.5)
    for values in (
        iter(wanted),
        (value for value in wanted),
        np.array(wanted),
        np.array(wanted, dtype=np.float32),
        torch.tensor(wanted),
        [np.float32(value) for value in wanted],
    ):
        schedule = read_schedule(values)
        # Twice: an iterator is used up by the first reading.
        assert sparsity_per_step(schedule, 3) == wanted
        assert sparsity_per_step(schedule, 3) == wanted


@pytest.mark.parametrize(
    ("schedule", "words"),
    [
        ([], "no values"),
        (iter(()), "no values"),
        (np.zeros(0), "no values"),
        (0.5, "schedule is 0.5: give one sparsity per step"),
        ("0.5", "schedule is '0.5'"),
        (np.zeros((2, 2)), r"sparsity of step 0 is \[0.0, 0.0\]"),
        ([0.0, 1.0], "sparsity of step 1 is 1.0"),
    ],
)
def test_what_is_no_schedule(schedule, words):
    with pytest.raises(InvalidInputError, match=words):
        read_schedule(schedule)


def test_a_step_that_ran_dense_ends_the_run():
    pipe = SimpleNamespace(num_timesteps=2)
    run = StepRun(pipe, [0.0, 0.5], lambda value: None)
    run.before_call(CALL)
    run.after_call(CallReport(routed=0, dense=2))  # asked to be dense
    run.on_step_end(pipe, 0, 999, {})
    run.before_call(CALL)
    with pytest.raises(DenseAttentionError, match="step 1 .* sparsity 0.5, but 1 of 2 self-att"):
        run.after_call(CallReport(routed=1, dense=1))


def test_a_permitted_dense_step_is_said_once_and_reported(caplog):
    pipe = SimpleNamespace(num_timesteps=2)
    run = StepRun(pipe, [0.5, 0.5], lambda value: None, allow_dense=True)
    for step, report in enumerate((CallReport(1, 1), CallReport(0, 2))):
        for _ in range(2):
            run.before_call(CALL)
            run.after_call(report)
        run.on_step_end(pipe, step, 999, {})
    assert run.reports() == (StepReport(0, 0.5, 2, 2), StepReport(1, 0.0, 0, 4, 1.0))
    assert [report.density for report in run.reports()] == [None, 1.0]
    assert caplog.text.count("allow_dense=True permits it") == 1
