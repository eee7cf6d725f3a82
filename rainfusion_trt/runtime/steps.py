"""Follows a diffusers denoising loop: which step it is in, its sparsity, and its time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import DenseAttentionError, GenerationCancelled, InvalidInputError
from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.runtime.finite import check_latents
from rainfusion_trt.runtime.pipes import parameters_of
from rainfusion_trt.runtime.precision import PrecisionPlan, precision_per_step
from rainfusion_trt.runtime.report import CallReport, Moment, StepReport
from rainfusion_trt.runtime.schedule import Schedule, planned_sparsity, shortfall, summary
from rainfusion_trt.sigma_schedule import SigmaSchedule

logger = logging.getLogger("rainfusion_trt")

_LEAVES_OUT = "skip_steps_sigma_threshold"

Call = Mapping[str, Any]
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]
Progress = Callable[[int, int], None]
"""Called with the steps that are done and all that are known of: a pipeline that makes its clip in
segments, each in steps of its own, adds those of the next one when that begins."""


@runtime_checkable
class Flag(Protocol):
    """What says that a generation is to end, such as a `threading.Event`."""

    def is_set(self) -> bool: ...


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
    density : float or None
        Computed share of the token pairs, as in `StepReport`.
    ran : bool
        False where a step cache answered in the transformer's place.
    precision : str or None
        Of its attention, as in `StepReport`.
    """

    step: int
    sparsity: float
    transformer_ms: float
    total_ms: float
    density: float | None = None
    ran: bool = True
    precision: Precision | None = "16bit"


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
    transformer, of which guidance may make one or two per step. Some pipelines make a clip segment
    by segment (Wan Animate, long clips of SkyReels V2 and LTX-Video), and count from 0 in each:
    every segment is noise at first, so that the schedule is for each of them. Reports and timings
    number the steps of all segments one after the other.

    Parameters
    ----------
    schedule, from_sigmas
        Sparsity per step, see `planned_sparsity`.
    set_sparsity
        Called before the first transformer call of every step.
    precision, set_precision
        In which precision steps run, and what is called with it before `set_sparsity`; None where
        there is but one.
    why_dense
        Keyword arguments of a call of the transformer, a sparsity and a precision -> what makes
        that sparsity one without effect, in one line, or None; None for no such check.
    sparse
        False where the backend has dense attention only.
    allow_dense
        Go on, with a warning, where attention runs dense although a sparsity is asked for.
    callback
        The user's own `callback_on_step_end`.
    clock
        Takes the times; None for no timings.
    progress
        Called before the first step and after every step.
    cancel
        Looked at before every call of the transformer and after every step.
    same_calls
        False where other processes, which look at the same flag, may make other calls: it is looked
        at after every step alone then, as all of them have to.
    """

    def __init__(
        self,
        pipe: Any,
        schedule: Schedule,
        set_sparsity: Callable[[float], None],
        *,
        from_sigmas: bool = False,
        precision: PrecisionPlan = "16bit",
        set_precision: Callable[[Precision], None] | None = None,
        why_dense: Callable[[Call, float, Precision], str | None] | None = None,
        sparse: bool = True,
        allow_dense: bool = False,
        callback: StepCallback | None = None,
        clock: StepClock | None = None,
        progress: Progress | None = None,
        cancel: Flag | None = None,
        same_calls: bool = True,
    ) -> None:
        self._pipe = pipe
        self._schedule = schedule
        self._from_sigmas = from_sigmas
        self._set_sparsity = set_sparsity
        self._precision = precision
        self._set_precision = set_precision
        self._sparse = sparse
        self._why_dense = why_dense
        self._allow_dense = allow_dense
        self._callback = callback
        self._clock = clock
        self._progress = progress
        self._cancel = cancel
        self._same_calls = same_calls
        self._never = int(_LEAVES_OUT in parameters_of(type(pipe)))
        self._planned: tuple[float, ...] | None = None  # of this segment
        self._precisions: tuple[Precision, ...] = ()
        self._timesteps: Any = None  # of the scheduler, as it was planned
        self._before = 0  # steps of earlier segments
        self._step = 0  # of this segment
        self._prepared = -1
        self._asked: dict[int, float] = {}  # by step of all segments
        self._warned = False
        self._reports: dict[int, list[CallReport]] = {}
        self._calls: list[list[Any]] = []  # [step, start, end] per call of the transformer
        self._ends: dict[int, Any] = {}

    def reports(self) -> tuple[StepReport, ...]:
        """What the steps ran that have run."""
        return tuple(self._report(step) for step in self._reports)

    def before_call(self, call: Call) -> Moment:
        """Right before a call of the transformer; returns where in the generation it comes.

        Raises
        ------
        DenseAttentionError
            Nothing can be sparse in this clip, a sparsity was asked for, and nobody allowed that.
        GenerationCancelled
            The caller asked for it.
        """
        if self._begins_segment():
            self._before += self._step
            self._step, self._prepared, self._planned = 0, -1, None
        if self._planned is None:
            # Only now known for sure: custom timesteps and `strength` change the number of steps.
            planned = planned_sparsity(self._schedule, self._pipe, from_sigmas=self._from_sigmas)
            steps, ran = len(planned), len(planned) - self._never
            counted = ran if callable(self._precision) else steps  # values are one for each
            self._precisions = precision_per_step(self._precision, counted)[:ran]
            self._planned = self._possible(planned[:ran], call)
            self._timesteps = self._scheduled()
            self._step = self._left_out(steps)
            if not self._before:
                self._say_plan()
            self._tell(self._step)
        if self._same_calls:
            check_cancelled(self._cancel, self._done)
        if self._prepared != self._step:
            self._asked[self._done] = self._planned[self._step]
            if self._set_precision is not None:
                self._set_precision(self._precisions[self._step])
            self._set_sparsity(self._planned[self._step])
            self._prepared = self._step
        if self._clock is not None:
            self._calls.append([self._done, self._clock.mark(), None])
        steps = len(self._planned) + self._never
        return Moment(self._step, steps, self._done, self._never)

    def after_call(self, report: CallReport) -> None:
        """Right after a call of the transformer.

        Raises
        ------
        DenseAttentionError
            The step was to be sparse, attention ran dense, and nobody allowed that.
        """
        if self._clock is not None:
            self._calls[-1][2] = self._clock.mark()
        self._reports.setdefault(self._done, []).append(report)
        asked = self._asked[self._done]
        if asked > 0.0 and report.dense and self._sparse:
            self._permit(
                f"step {self._done} was to run at sparsity {asked:g}, but {report.dense} of "
                f"{report.routed + report.dense} self-attentions did not run RainFusion: a hook, "
                "an attention processor or an attention backend took its place"
            )

    @property
    def _done(self) -> int:
        """Steps that are done, of all segments."""
        return self._before + self._step

    def _scheduled(self) -> Any:
        return getattr(getattr(self._pipe, "scheduler", None), "timesteps", None)

    def _left_out(self, steps: int) -> int:
        """How many steps the pipeline has left out before its first call, and told nobody of.

        That of long LTX-Videos does so while sigma is above a threshold of the call. It also runs
        no step of the last timestep.
        """
        if not self._never:
            return 0
        timesteps = torch.as_tensor(self._timesteps)
        places = (timesteps == self._pipe.current_timestep).nonzero()
        return max(0, int(places[0]) - (len(timesteps) - steps)) if len(places) else 0

    def _begins_segment(self) -> bool:
        """Whether a call is the first one of another segment than the one that was planned.

        Its steps are done, or the scheduler was set anew: LTX-Video leaves out a last timestep.
        """
        if self._planned is None or not 0 <= self._prepared < self._step:
            return False
        return self._step >= len(self._planned) or self._timesteps is not self._scheduled()

    def _possible(self, planned: tuple[float, ...], call: Call) -> tuple[float, ...]:
        """The plan as this clip can run it."""
        if self._why_dense is None or not self._sparse:
            return planned
        steps = list(zip(planned, self._precisions, strict=True))
        # Windows are of other sizes in another precision, so that some steps alone may be dense.
        for precision in sorted(set(self._precisions)):
            peak = max((s for s, p in steps if p == precision), default=0.0)
            reason = self._why_dense(call, peak, precision) if peak > 0.0 else None
            if reason is not None:
                self._permit(reason)
                steps = [(0.0 if p == precision else s, p) for s, p in steps]
        return tuple(sparsity for sparsity, _ in steps)

    def _say_plan(self) -> None:
        """What only the timesteps tell: which steps a schedule by sigma makes dense."""
        assert self._planned is not None
        if not self._sparse:
            return
        if isinstance(self._schedule, SigmaSchedule):
            logger.info("sparsity per step: %s", summary(self._planned))
        reason = shortfall(self._schedule, self._planned)
        if reason is not None and not self._warned:
            logger.warning("%s", reason)

    def _tell(self, done: int) -> None:
        if self._progress is not None and self._planned is not None:
            self._progress(self._before + done, self._before + len(self._planned))

    def _permit(self, message: str) -> None:
        """Raise for attention that is dense in spite of the plan, or say it once if allowed."""
        if not self._allow_dense:
            raise DenseAttentionError(f"{message} (allow_dense=True accepts dense attention)")
        if not self._warned:
            logger.warning("%s; allow_dense=True permits it", message)
        self._warned = True

    def _report(self, step: int) -> StepReport:
        return StepReport.of(step, self._asked[step], self._reports[step])

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
            result = tensors_of_callback(self._callback(pipe, step, timestep, tensors))
        self._tell(step + 1)
        if self._clock is not None:
            self._ends[self._before + step] = self._clock.mark()
        self._step = step + 1
        if self._planned is not None and self._step == len(self._planned):
            check_latents(result.get("latents", tensors.get("latents")))
        check_cancelled(self._cancel, self._done)
        return result

    def timings(self) -> tuple[StepTiming, ...]:
        """Times of the steps that ended; waits for the device.

        Without those of which another process has made all calls.
        """
        clock = self._clock
        if clock is None or not self._calls:
            return ()
        rows = []
        start = self._calls[0][1]
        for step, end in self._ends.items():
            if step not in self._reports:
                continue
            calls = [call for call in self._calls if call[0] == step]
            busy = sum(clock.milliseconds(begin, finish) for _, begin, finish in calls)
            ran = self._report(step)
            whole = clock.milliseconds(start, end)
            said = (ran.density, ran.ran, ran.precision)
            rows.append(StepTiming(step, ran.sparsity, busy, whole, *said))
            start = end
        return tuple(rows)


def tensors_of_callback(result: Any) -> dict[str, Any]:
    """What a `callback_on_step_end` has returned.

    Raises
    ------
    InvalidInputError
        It is no dictionary, of which diffusers would take tensors.
    """
    if not isinstance(result, dict):
        raise InvalidInputError(
            f"callback_on_step_end returned {shown(result)}: return its last argument, the "
            "dictionary of tensors, changed or not"
        )
    return result


def check_cancelled(cancel: Flag | None, done: int = 0) -> None:
    """Raise GenerationCancelled if the flag is set."""
    if cancel is not None and cancel.is_set():
        raise GenerationCancelled(f"the generation was cancelled after {done} steps")
