"""Follows a diffusers denoising loop: which step it is in, its sparsity, and its time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rainfusion_trt.runtime.schedule import Schedule, sparsity_per_step

StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StepTiming:
    """Time of one denoising step, in milliseconds.

    Attributes
    ----------
    step : int
        From 0.
    sparsity : float
        Sparsity it ran at; 0 where the backend only has dense attention.
    transformer_ms : float
        All calls of the transformer in this step.
    total_ms : float
        The step with guidance, scheduler and callback.
    """

    step: int
    sparsity: float
    transformer_ms: float
    total_ms: float


class StepClock:
    """Marks in time: CUDA events on torch's current stream, or the host's clock on CPU."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._device = device

    def mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """Time between two marks; on CUDA it waits for the second one."""
        if not self._cuda:
            return (end - start) * 1e3
        end.synchronize()
        return start.elapsed_time(end)


class StepRun:
    """One run of the denoising loop.

    Steps are counted by the pipeline's `callback_on_step_end` (see `counting`), not by calls of the
    transformer, of which guidance may make one or two per step.

    Parameters
    ----------
    schedule
        Sparsity per step, see `sparsity_per_step`.
    set_sparsity
        Called before the first transformer call of every step.
    callback
        The user's own `callback_on_step_end`.
    clock
        Takes the times; None for no timings.
    sparse
        False where the backend has dense attention only, so that the record says 0.
    """

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        set_sparsity: Callable[[float], None],
        *,
        callback: StepCallback | None = None,
        clock: StepClock | None = None,
        sparse: bool = True,
    ) -> None:
        self._pipe = pipe
        self._schedule = schedule
        self._set_sparsity = set_sparsity
        self._callback = callback
        self._clock = clock
        self._sparse = sparse
        self._planned: tuple[float, ...] | None = None
        self._step = 0
        self._prepared = -1
        self._calls: list[list[Any]] = []  # [step, start, end] per call of the transformer
        self._ends: dict[int, Any] = {}

    @property
    def values(self) -> tuple[float, ...]:
        """Sparsity of the steps that ran."""
        planned = (self._planned or ())[: self._prepared + 1]
        return planned if self._sparse else (0.0,) * len(planned)

    def before_call(self) -> None:
        """Right before a call of the transformer."""
        if self._planned is None:
            # Only now known for sure: custom timesteps and `strength` change the number of steps.
            self._planned = sparsity_per_step(self._schedule, self._pipe.num_timesteps)
        if self._prepared != self._step:
            self._set_sparsity(self._planned[self._step])
            self._prepared = self._step
        if self._clock is not None:
            self._calls.append([self._step, self._clock.mark(), None])

    def after_call(self) -> None:
        """Right after a call of the transformer."""
        if self._clock is not None:
            self._calls[-1][2] = self._clock.mark()

    @contextmanager
    def counting(self, *, by_callback: bool) -> Iterator[dict[str, Any]]:
        """Arguments for the diffusers pipeline with which this run learns of every step's end.

        Pipelines without `callback_on_step_end` call their scheduler once a step, so it is watched
        in the callback's place.
        """
        if by_callback:
            yield {"callback_on_step_end": self.on_step_end}
            return
        scheduler = self._pipe.scheduler
        original = scheduler.step

        def step(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self.on_step_end(self._pipe, self._step, None, {})
            return result

        scheduler.step = step
        try:
            yield {}
        finally:
            del scheduler.step

    def on_step_end(
        self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]
    ) -> dict[str, Any]:
        """The `callback_on_step_end` handed to diffusers."""
        result = tensors
        if self._callback is not None:
            result = self._callback(pipe, step, timestep, tensors)
        if self._clock is not None:
            self._ends[step] = self._clock.mark()
        self._step = step + 1
        return result

    def timings(self) -> tuple[StepTiming, ...]:
        """Times of the steps that ended; waits for the device."""
        clock = self._clock
        if clock is None or not self._calls:
            return ()
        rows = []
        start = self._calls[0][1]
        for step, end in self._ends.items():
            calls = [call for call in self._calls if call[0] == step]
            busy = sum(clock.milliseconds(begin, finish) for _, begin, finish in calls)
            sparsity = self._planned[step] if self._planned and self._sparse else 0.0
            rows.append(StepTiming(step, sparsity, busy, clock.milliseconds(start, end)))
            start = end
        return tuple(rows)
