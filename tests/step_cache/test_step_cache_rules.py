"""The rules against plain NumPy, and the cache around transformers whose skips are known."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.runtime.report import CallReport, Moment, StepReport
from rainfusion_trt.step_cache.cache import StepCache
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.rules import EasyRule
from rainfusion_trt.step_cache.settings import REUSES, CacheSettings

STEPS = 20
# Of the answers of these tests most can be told from those of other steps.
residual = functools.partial(CacheSettings, reuse="residual")
ONE_OUTPUT = SimpleNamespace(
    name="fake",
    outputs=("sample",),
    noisy_inputs=("hidden_states",),
    result=lambda tensors: SimpleNamespace(sample=tensors[0]),
)
Forward = Callable[..., Any]


def ratios(*values: float | None) -> MagnitudeRatios:
    steps = tuple(float(i) for i in range(len(values), 0, -1))
    return MagnitudeRatios("fake", "Fake", steps, None, values, reuse="residual")


class Loop:
    """Calls of a generation by hand: what ran, and what the pipeline got."""

    def __init__(self, settings: CacheSettings, model: Any = ONE_OUTPUT, **more: Any) -> None:
        self.cache = StepCache(settings, model, **more)
        self.ran: list[int] = []
        self.reports: list[CallReport] = []

    def call(self, moment: Moment, forward: Forward, owner: Any = "one", **call: Any) -> Any:
        def run() -> Any:
            self.ran.append(moment.done)
            return forward(**call)

        given = {"return_dict": False, **call}
        output, report = self.cache.call(owner, moment, given, run, lambda: CallReport(routed=4))
        self.reports.append(report)
        return output


def run_steps(
    settings: CacheSettings, forward: Forward, inputs: Sequence[np.ndarray]
) -> tuple[list[int], list[np.ndarray]]:
    loop, count = Loop(settings), len(inputs)
    outputs = [
        loop.call(Moment(i, count, i), forward, hidden_states=torch.from_numpy(x))[0].numpy()
        for i, x in enumerate(inputs)
    ]
    return loop.ran, outputs


def drifting(seed: int) -> list[np.ndarray]:
    """Latents that turn from one noise into another, faster and slower."""
    rng = np.random.default_rng(seed)
    first, last = rng.standard_normal((2, 1, 4, 3, 5, 6))
    at = np.cumsum(rng.uniform(0.2, 1.8, STEPS)) / STEPS
    return [(np.cos(t) * first + np.sin(t) * last).astype(np.float32) for t in at]


def bent(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
    return (torch.tanh(hidden_states) * 1.5 + hidden_states.roll(1, -1),)


def easy_in_numpy(
    inputs: Sequence[np.ndarray], threshold: float, first: int, last: int, most: int, reuse: str
) -> tuple[list[int], list[np.ndarray], float]:
    """Steps that run, outputs, and how near to the threshold a decision came."""
    ran: list[int] = []
    outputs: list[np.ndarray] = []
    rate, error, row, margin = None, 0.0, 0, np.inf
    x_ran = y_ran = added = None
    for i, x in enumerate(inputs):
        skip = False
        if first <= i < len(inputs) - last and rate is not None and row < most:
            error += rate * np.abs(x - inputs[i - 1]).mean() / np.abs(y_ran).mean()
            margin = min(margin, abs(error - threshold))
            skip = error < threshold
        if skip:
            row += 1
            outputs.append(y_ran if reuse == "output" else x + added)
            continue
        y = np.tanh(x) * 1.5 + np.roll(x, 1, -1)
        if y_ran is not None:
            rate = np.abs(y - y_ran).mean() / np.abs(x - x_ran).mean()
        x_ran, y_ran, added, error, row = x, y, y - x, 0.0, 0
        ran.append(i)
        outputs.append(y)
    return ran, outputs, margin


@pytest.mark.parametrize("threshold", [0.0, 0.12, 0.3, 100.0])
@pytest.mark.parametrize("reuse", REUSES)
def test_easy_is_what_numpy_says(reuse, threshold):
    inputs = drifting(0)
    settings = CacheSettings("easy", threshold, first=0.15, last=2, max_skips=4, reuse=reuse)
    wanted, outputs, margin = easy_in_numpy(
        [x.astype(np.float64) for x in inputs], threshold, 3, 2, 4, reuse
    )
    ran, found = run_steps(settings, bent, inputs)
    # Of sums of float32 over 360 terms, whose roundings cannot come near to that.
    assert margin > 1e-4 or threshold == 0.0
    assert ran == wanted
    assert (len(ran) == STEPS) == (threshold == 0.0)
    for one, other in zip(found, outputs, strict=True):
        # x + (y - x) of values below 8: a rounding of each of three operations, and of tanh.
        np.testing.assert_allclose(one, other, atol=8 * 8 * np.finfo(np.float32).eps, rtol=0)


def test_mag_is_what_numpy_says():
    values = [None, *np.random.default_rng(3).uniform(0.9, 1.06, STEPS - 1)]
    settings = residual("mag", threshold=0.1, first=0.2, ratios=ratios(*values))
    inputs = drifting(0)
    ran, found = run_steps(settings, bent, inputs)
    wanted, error, product, row = [], 0.0, 1.0, 0
    for i in range(STEPS):
        skip = 4 <= i < STEPS - 1 and row < 3
        if skip:
            product *= values[i]
            error += abs(1 - product)
            skip = error < 0.1
        if skip:
            row += 1
        else:
            error, product, row = 0.0, 1.0, 0
            wanted.append(i)
    assert ran == wanted and 4 < len(ran) < STEPS
    skipped = next(i for i in range(STEPS) if i not in ran)
    x, before = inputs[skipped], inputs[skipped - 1]
    given = bent(torch.from_numpy(before))[0].numpy()
    np.testing.assert_allclose(found[skipped], x + (given - before), atol=1e-5, rtol=0)


def even(step: int) -> torch.Tensor:
    """Latents of mean size 8 that move by 1 on average in every step, in exact numbers."""
    return torch.tensor([[8.0 + step, 8.0 - step]])


def twice(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
    """Moves twice as fast as what it gets, so that each step adds 2 * 1 / 16."""
    return (2 * hidden_states,)


@pytest.mark.parametrize(
    ("threshold", "most", "wanted"),
    [
        (0.3, 3, [0, 1, 4, 7]),  # two at 0.125 and 0.25, then 0.375
        (0.25, 3, [0, 1, 3, 5, 7]),  # below 0.25 there is one
        (0.3, 1, [0, 1, 3, 5, 7]),
        (9.0, 3, [0, 1, 5, 7]),
        (0.125, 3, list(range(8))),
    ],
)
def test_known_skips(threshold, most, wanted):
    loop = Loop(residual("easy", threshold=threshold, first=0.1, max_skips=most))
    for i in range(8):
        (output,) = loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
        last = max(step for step in wanted if step <= i)
        assert torch.equal(output, even(i) + even(last))  # what was added is the input then
    assert loop.ran == wanted
    reports = [StepReport.of(i, 0.5, [call]) for i, call in enumerate(loop.reports)]
    assert [step.step for step in reports if step.ran] == wanted
    for step in reports:
        assert (step.routed, step.skipped) == ((4, 0) if step.ran else (0, 4))
        assert (step.sparsity, step.density) == ((0.5, None) if step.ran else (0.0, 0.0))


def test_the_output_of_the_last_time():
    """A new tensor in every step, whatever the pipeline has made of those before."""
    loop = Loop(CacheSettings("easy", threshold=0.3, first=0.1))
    given = []
    for i in range(5):
        given.append(loop.call(Moment(i, 8, i), twice, hidden_states=even(i))[0])
        if i not in (1, 4):
            given[-1].mul_(7)
    assert loop.ran == [0, 1, 4]
    assert torch.equal(given[1], 2 * even(1)) and torch.equal(given[3], 14 * even(1))
    assert torch.equal(given[2], 14 * even(1)) and torch.equal(given[4], 2 * even(4))


def test_shares_of_steps_that_are_skipped_in_part():
    dense, skipped = CallReport(0, 3), CallReport(0, 0, skipped=3, ran=False)
    assert StepReport.of(0, 0.5, [dense, skipped]).density == pytest.approx(0.5)
    sparse = CallReport(2, 0, torch.tensor(0.4))
    both = StepReport.of(0, 0.5, [sparse, CallReport(0, 0, skipped=2)])
    assert both.density == pytest.approx(0.2) and both.ran and both.sparsity == 0.5


def test_both_halves_are_decided_by_the_first_and_keep_their_own():
    loop = Loop(residual("easy", threshold=0.3, first=0.1))
    for i in range(6):
        half = loop.call(Moment(i, 6, i), twice, hidden_states=even(i))[0]
        # The other half alone would always run: it jumps.
        other = loop.call(
            Moment(i, 6, i), lambda hidden_states: (-3 * hidden_states,), hidden_states=even(9 * i)
        )[0]
        if i in (2, 3):
            assert torch.equal(half, even(i) + even(1))
            assert torch.equal(other, even(9 * i) - 4 * even(9))
    assert loop.ran == [0, 0, 1, 1, 4, 4, 5, 5]


def test_a_half_that_has_nothing_kept_runs():
    """Guidance that sets in later: its first call has run in no step before."""
    loop = Loop(residual("easy", threshold=9.0, first=0.1))
    for i in range(4):
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
        if i == 3:
            loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
    assert loop.ran == [0, 1, 3]  # the second call of step 3


def test_a_half_that_was_off_in_the_last_step_that_ran_runs():
    """What it gave in a step before that is older than any step that may be skipped."""
    loop = Loop(residual("easy", threshold=9.0, first=0.1, max_skips=1))
    for i in range(6):
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
        if i != 3:
            loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
    assert loop.ran == [0, 0, 1, 1, 3, 4, 5, 5]


def test_a_process_without_a_call_in_a_step_runs_in_the_next():
    """The second half of guidance, off in step 3: the first process may have run that step."""
    loop = Loop(residual("easy", first=0.1), decide=lambda step, make: step != 1)
    for i in (0, 1, 2, 4, 5):
        loop.call(Moment(i, 20, i), twice, hidden_states=even(i))
    assert loop.ran == [0, 1, 4]


def test_a_call_is_known_by_what_it_is_for():
    """As of skip-layer guidance: its second call is another one where guidance has ended."""
    loop = Loop(CacheSettings("easy", threshold=9.0, first=0.1, last=0))
    signs = {"cond": 1, "uncond": -1, "skip": 5}
    for i in range(5):
        for name in signs if i < 3 else ("cond", "skip"):
            loop.cache.named(name)
            given = loop.call(
                Moment(i, 8, i),
                lambda hidden_states, sign=signs[name]: (sign * hidden_states,),
                hidden_states=even(i),
            )[0]
            assert torch.equal(given, signs[name] * even(min(i, 1)))
    assert loop.ran == [0] * 3 + [1] * 3
    # A step that begins with another call than the one before is not decided by that.
    loop.cache.named("uncond")
    loop.call(Moment(5, 8, 5), twice, hidden_states=torch.cat([even(5), even(5)]))
    assert loop.ran[-1] == 5


def test_experts_and_segments_begin_anew():
    loop = Loop(residual("easy", threshold=9.0, first=0.1))
    for i in range(12):
        owner = "high" if i < 4 else "low"
        loop.call(Moment(i, 12, i), twice, owner, hidden_states=even(i % 8))
    # Each has to run twice before anything is known of it; the last always runs.
    assert loop.ran == [0, 1, 4, 5, 9, 11]
    loop = Loop(residual("easy", threshold=9.0, first=0.1))
    for i in range(8):
        loop.call(Moment(i % 4, 4, i), twice, hidden_states=even(i % 4))
    assert loop.ran == [0, 1, 3, 4, 5, 7]


def test_a_clip_of_another_size_runs():
    loop = Loop(residual("easy", threshold=9.0, first=0.0, last=0))
    for i in range(6):
        x = even(i) if i < 3 else torch.cat([even(i), even(i)])
        (output,) = loop.call(Moment(i, 6, i), twice, hidden_states=x)
        assert output.shape == x.shape
    assert loop.ran == [0, 1, 3, 4]


def test_channels_beside_the_noisy_ones_do_not_count():
    """An image's latents and a mask may be anything, and the answer has the output's channels."""

    def forward(hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        return (2 * hidden_states[:, :1],)

    loop = Loop(residual("easy", threshold=0.3, first=0.1))
    for i in range(4):
        x = torch.stack([even(i), 1e6 * torch.randn(1, 2)], dim=1)
        (output,) = loop.call(Moment(i, 5, i), forward, hidden_states=x)
    assert loop.ran == [0, 1] and torch.equal(output[:, 0], even(3) + even(1))


def test_two_outputs_are_paired_and_the_one_that_moves_more_counts():
    model = SimpleNamespace(outputs=("a", "b"), noisy_inputs=("x", "y"), result=tuple, name="two")

    def forward(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 2 * x, 5 * y

    loop = Loop(residual("easy", threshold=0.3, first=0.1), model)
    for i in range(5):
        loud = torch.tensor([2.0 + i / 2, 2.0 - i / 2])  # moves by a quarter of its size
        outputs = loop.call(Moment(i, 6, i), forward, x=even(i), y=loud)
    assert loop.ran == [0, 1, 3]
    assert torch.equal(outputs[1], loud + 4 * torch.tensor([3.5, 0.5]))


def test_latents_that_a_pipeline_changes_in_place_and_low_precision():
    x = torch.ones(1, 2, dtype=torch.bfloat16)
    x.copy_(even(0))
    loop = Loop(residual("easy", threshold=0.3, first=0.1))
    for i in range(5):
        x.copy_(even(i))
        (output,) = loop.call(
            Moment(i, 6, i), lambda hidden_states: (2 * hidden_states.float(),), hidden_states=x
        )
    assert loop.ran == [0, 1, 4]
    assert output.dtype == torch.float32
    ((kept, _),) = loop.cache._kept[None, 0].residuals
    assert kept.dtype == torch.bfloat16


def test_inputs_that_do_not_change_or_are_no_numbers_run():
    loop = Loop(residual("easy", threshold=9.0, first=0.0, last=0))
    for i in range(4):
        loop.call(Moment(i, 4, i), twice, hidden_states=even(0))
    assert loop.ran == [0, 1, 2, 3]
    loop = Loop(residual("easy", threshold=9.0, first=0.0, last=0))
    for i in range(4):
        loop.call(Moment(i, 4, i), twice, hidden_states=even(i) * (torch.nan if i == 2 else 1))
    assert loop.ran == [0, 1, 2, 3]


def test_one_number_is_read_for_a_decision(monkeypatch):
    reads = []
    real = torch.Tensor.__float__
    monkeypatch.setattr(torch.Tensor, "__float__", lambda self: reads.append(1) or real(self))
    loop = Loop(residual("easy", threshold=0.3, first=0.1))
    for i in range(8):
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
    assert len(reads) == 5  # of steps 2 to 6: the first two and the last are not asked about


def test_what_is_kept_goes_with_the_cache():
    loop = Loop(CacheSettings("easy", threshold=0.3))
    for i in range(4):
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
    kept = [weakref.ref(t) for t in (*loop.cache._kept[None, 0].outputs, *loop.cache._latents)]
    del loop
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_an_output_that_no_input_fits_is_said():
    loop = Loop(residual("easy"))
    with pytest.raises(UnsupportedError, match=r"output \[1, 3\] is not of the shape of hidden"):
        loop.call(Moment(0, 8, 0), lambda hidden_states: (torch.ones(1, 3),), hidden_states=even(0))


def test_one_process_decides_for_all():
    asked = []

    def other_says(step: int, make: Callable[[], bool]) -> bool:
        asked.append(step)
        return step in (3, 5)

    loop = Loop(residual("easy", threshold=0.0), rule=EasyRule(0.0), decide=other_says)
    for i in range(8):
        loop.call(Moment(i, 8, i), twice, hidden_states=even(i))
    assert loop.ran == [0, 1, 2, 4, 6, 7]
    assert asked == [1, 2, 3, 4, 5, 6]  # not about steps that always run


def test_a_segment_whose_first_steps_are_left_out_begins_anew():
    """Its noise is another, and nothing of the segment before is an answer in it."""
    asked = []
    loop = Loop(
        residual("mag", threshold=9.0, first=0.0, max_skips=9, ratios=ratios(*[1.0] * 8)),
        timesteps=lambda steps: asked.append(steps) or tuple(map(float, range(8, 0, -1))),
    )
    for before in (0, 7):
        for step in range(3, 7):
            moment = Moment(step, 8, before + step)
            loop.call(moment, bent, hidden_states=torch.full((1, 4), float(step)))
    assert asked == [8, 8]
    assert loop.ran == [3, 10]


def test_the_last_step_is_the_last_that_runs():
    loop = Loop(residual("mag", threshold=9.0, first=0.0, max_skips=9, ratios=ratios(*[1.0] * 8)))
    for step in range(7):
        loop.call(Moment(step, 8, step, never=1), bent, hidden_states=torch.zeros(1, 4))
    assert loop.ran == [0, 6]
