"""Steps behind a cache, and what a step takes at each sparsity."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import rainfusion_trt
from benchmarks.fidelity.film.bench import Bench
from benchmarks.fidelity.film.entries import TARGET
from benchmarks.fidelity.film.videos import DENSE_ABOVE, Task, dense_steps, model_velocity
from benchmarks.film.evaluate import dense_attention
from benchmarks.film.model import Attention
from benchmarks.film.product import OperatorRule
from rainfusion_trt.runtime.report import CallReport, Moment
from rainfusion_trt.step_cache.cache import StepCache
from rainfusion_trt.step_cache.rules import Rule
from rainfusion_trt.step_cache.settings import CacheSettings

# What the cache asks of a model: one output, for the latents that it is given.
MODEL: Any = SimpleNamespace(
    name="film", outputs=("velocity",), noisy_inputs=("hidden_states",), result=tuple
)


@dataclass
class Cached:
    """The steps of one generation behind a cache, as `integrate` takes them.

    Attributes
    ----------
    ran
        Numbers of those that ran.
    """

    settings: CacheSettings
    rule: Rule | None = None
    ran: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._cache = StepCache(self.settings, MODEL, rule=self.rule)

    def __call__(self, step: int, steps: int, x: Tensor, run: Any) -> Tensor:
        def ran() -> tuple[Tensor]:
            self.ran.append(step)
            return (run(),)

        call = {"hidden_states": x, "return_dict": False}
        moment = Moment(step, steps, step)
        return self._cache.call(self, moment, call, ran, lambda: CallReport(1))[0][0]


@dataclass(frozen=True)
class Costs:
    """What a step takes, by its sparsity.

    Attributes
    ----------
    milliseconds, density
        Of a step; 0 is dense. The density is that of attention, pseudo-keys counted.
    skipped
        Milliseconds of a step that the cache answers.
    """

    milliseconds: dict[float, float]
    density: dict[float, float]
    skipped: float

    def of(self, task: Task, s: float, ran: Sequence[int]) -> tuple[float, float]:
        """Time and density of a video against those of all steps dense."""
        dense = dense_steps(task)
        early = sum(step < dense for step in ran)
        late, dense_ms = len(ran) - early, self.milliseconds[0.0]
        taken = early * dense_ms + late * self.milliseconds[s]
        taken += (task.steps - len(ran)) * self.skipped
        return taken / dense_ms / task.steps, (early + late * self.density[s]) / task.steps


@dataclass(frozen=True)
class Sparse:
    """A method of the operator alone, nothing counted, so that it can be timed."""

    bench: Bench
    sparsity: float

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rule = OperatorRule(TARGET, self.sparsity, self.bench.scene, TARGET)
        settings = rule.settings.replace(text="first").attributes()
        q, k, v = (x[None] for x in (q, k, v))
        grid = self.bench.scene.grid
        return rainfusion_trt.rainfusion_attention(
            q, k, v, grid, sparsity=self.sparsity, **settings
        )[0]


def attention_of(bench: Bench, s: float) -> Attention:
    """Dense attention, or the package's own."""
    return Sparse(bench, s) if s else dense_attention


@torch.no_grad()
def measured_costs(bench: Bench, task: Task, sparsities: Sequence[float], rounds: int) -> Costs:
    """Time of a step and density of its attention, both of the model here."""
    x, text = task.first(task.items[0])
    x = x.to(next(bench.model.parameters()).dtype)
    now = torch.tensor(DENSE_ABOVE / 2, device=bench.device)
    milliseconds, density = {}, {0.0: 1.0}
    for s in dict.fromkeys((0.0, *sparsities)):
        run = partial(model_velocity, bench, x, now, text)
        times = [_milliseconds(bench, lambda: run(attention_of(bench, s))) for _ in range(rounds)]  # noqa: B023
        milliseconds[s] = statistics.median(times[1:] or times)
        if s:
            rule = OperatorRule(TARGET, s, bench.scene, TARGET)
            run(rule)
            density[s] = rule.tally.sums[0] / rule.tally.sums[3]
    return Costs(milliseconds, density, _skipped(bench, x, rounds))


def _skipped(bench: Bench, x: Tensor, rounds: int) -> float:
    """Milliseconds of a step that the rule "easy" skips."""
    never = CacheSettings("easy", threshold=1e9, first=0.0, last=0, max_skips=rounds)
    cached, times = Cached(never), []
    for step in range(2 + rounds):
        y, given = (1 + 0.1 * step) * x, x
        call = partial(cached, step, 2 + rounds, y, lambda: 2 * given)  # noqa: B023
        times.append(_milliseconds(bench, call))
    if cached.ran != [0, 1]:
        raise RuntimeError(f"steps {cached.ran} ran, and two were to")
    return statistics.median(times[2:])


def _milliseconds(bench: Bench, run: Any) -> float:
    wait = torch.cuda.synchronize if bench.device.type == "cuda" else lambda: None
    wait()
    begin = time.perf_counter()
    run()
    wait()
    return 1e3 * (time.perf_counter() - begin)
