"""Follows a diffusers denoising loop: which step it is in, its sparsity, and its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from rainfusion_trt.errors import DenseAttentionError
from rainfusion_trt.runtime.finite import check_latents
from rainfusion_trt.runtime.report import CallReport, StepReport
from rainfusion_trt.runtime.schedule import Schedule, planned_sparsity

logger = logging.getLogger("rainfusion_trt")

Call = Mapping[str, Any]
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class StepTiming:
    """Time of one denoising step, in milliseconds.

    Attributes
    ----------
    step : int
        From 0.
    sparsity : float
        Sparsity it ran at; 0 where attention was dense, whatever was asked for.
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
    """One run of the denoising loop: sets the sparsity of every step and notes what ran.

    Steps are counted by the pipeline's `callback_on_step_end` (see `counting`), not by calls of the
    transformer, of which guidance may make one or two per step.

    Parameters
    ----------
    schedule
        Sparsity per step, see `planned_sparsity`.
    set_sparsity
        Called before the first transformer call of every step.
    free_frames
        Keyword arguments of a call of the transformer -> frames of the token grid that are no
        sinks; None for no such check.
    sparse
        False where the backend has dense attention only.
    allow_dense
        Go on, with a warning, where attention runs dense although a sparsity is asked for.
    callback
        The user's own `callback_on_step_end`.
    clock
        Takes the times; None for no timings.
    """

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        set_sparsity: Callable[[float], None],
        *,
        free_frames: Callable[[Call], int] | None = None,
        sparse: bool = True,
        allow_dense: bool = False,
        callback: StepCallback | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self._pipe = pipe
        self._schedule = schedule
        self._set_sparsity = set_sparsity
        self._sparse = sparse
        self._free_frames = free_frames
        self._allow_dense = allow_dense
        self._callback = callback
        self._clock = clock
        self._planned: tuple[float, ...] | None = None
        self._step = 0
        self._prepared = -1
        self._warned = False
        self._reports: dict[int, list[CallReport]] = {}
        self._calls: list[list[Any]] = []  # [step, start, end] per call of the transformer
        self._ends: dict[int, Any] = {}

    def reports(self) -> tuple[StepReport, ...]:
        """What the steps ran that have run."""
        return tuple(self._report(step) for step in self._reports)

    def before_call(self, call: Call) -> None:
        """Right before a call of the transformer."""
        if self._planned is None:
            # Only now known for sure: custom timesteps and `strength` change the number of steps.
            planned = planned_sparsity(self._schedule, self._pipe)
            self._planned = self._possible(planned, call)
        if self._prepared != self._step:
            self._set_sparsity(self._planned[self._step])
            self._prepared = self._step
        if self._clock is not None:
            self._calls.append([self._step, self._clock.mark(), None])

    def after_call(self, report: CallReport) -> None:
        """Right after a call of the transformer.

        Raises
        ------
        DenseAttentionError
            The step was to be sparse, attention ran dense, and nobody allowed that.
        """
        if self._clock is not None:
            self._calls[-1][2] = self._clock.mark()
        self._reports.setdefault(self._step, []).append(report)
        asked = (self._planned or ())[self._step]
        if asked > 0.0 and report.dense and self._sparse:
            self._permit(
                f"step {self._step} was to run at sparsity {asked:g}, but {report.dense} of "
                f"{report.routed + report.dense} self-attentions did not run RainFusion: a hook, "
                "an attention processor or an attention backend took its place"
            )

    def _possible(self, planned: tuple[float, ...], call: Call) -> tuple[float, ...]:
        """The plan as this clip can run it."""
        if self._free_frames is None or not self._sparse or max(planned, default=0.0) == 0.0:
            return planned
        free = self._free_frames(call)
        if free >= 2:
            return planned
        self._permit(
            f"the clip leaves {free} latent frames beside the sink frames, and sparse attention "
            "needs 2 or more: ask for more frames or fewer sink_frames, or for sparsity=0"
        )
        return (0.0,) * len(planned)

    def _permit(self, message: str) -> None:
        """Raise for attention that is dense in spite of the plan, or say it once if allowed."""
        if not self._allow_dense:
            raise DenseAttentionError(f"{message} (allow_dense=True accepts dense attention)")
        if not self._warned:
            logger.warning("%s; allow_dense=True permits it", message)
        self._warned = True

    def _report(self, step: int) -> StepReport:
        return StepReport.of(step, (self._planned or ())[step], self._reports[step])

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
            self.on_step_end(self._pipe, self._step, None, {"latents": result[0]})
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
        if self._planned is not None and self._step == len(self._planned):
            check_latents((result or {}).get("latents", tensors.get("latents")))
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
            sparsity = self._report(step).sparsity
            rows.append(StepTiming(step, sparsity, busy, clock.milliseconds(start, end)))
            start = end
        return tuple(rows)
