"""One call of a `Pipeline`: its arguments read and checked, its steps watched."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.parallel.sharing import Alone
from rainfusion_trt.runtime.artifacts import Artifacts
from rainfusion_trt.runtime.call_arguments import (
    callback_tensors,
    check_size,
    complete_arguments,
    output_type,
    step_count,
)
from rainfusion_trt.runtime.denoiser import Denoiser
from rainfusion_trt.runtime.frames import make_frames, say_other_size
from rainfusion_trt.runtime.loading import check_in_place
from rainfusion_trt.runtime.media import frames_of_video, read_media, say_stretch
from rainfusion_trt.runtime.output import PipelineOutput
from rainfusion_trt.runtime.pipes import Pipes, check_media, check_packages, parameters_of
from rainfusion_trt.runtime.plan import check_plan, why_dense
from rainfusion_trt.runtime.precision import PrecisionPlan, precision_per_step
from rainfusion_trt.runtime.schedule import Schedule
from rainfusion_trt.runtime.steps import (
    Flag,
    Progress,
    StepCallback,
    StepClock,
    StepRun,
    check_cancelled,
)
from rainfusion_trt.runtime.text_length import fit_text, text_bounds
from rainfusion_trt.step_cache.check import Caching

logger = logging.getLogger("rainfusion_trt")


@dataclass(frozen=True)
class Watch:
    """Who looks on while a call runs.

    Attributes
    ----------
    callback
        A `callback_on_step_end` of diffusers.
    progress, cancel
        See `StepRun`.
    profile
        Whether every step is measured.
    """

    callback: StepCallback | None = None
    progress: Progress | None = None
    cancel: Flag | None = None
    profile: bool = False


@dataclass(frozen=True)
class Caller:
    """Makes the calls of a `Pipeline`, one after the other.

    Attributes
    ----------
    artifacts, denoiser, pipes
        What runs.
    allow_dense
        See `Pipeline`.
    sharing
        What several processes do together.
    """

    artifacts: Artifacts
    denoiser: Denoiser
    pipes: Pipes
    allow_dense: bool
    sharing: Alone

    def run(
        self,
        schedule: Schedule,
        given: dict[str, Any],
        watch: Watch,
        caching: Caching | None = None,
        precision: PrecisionPlan = "16bit",
    ) -> PipelineOutput:
        """One call.

        Parameters
        ----------
        schedule
            Sparsity of its steps.
        caching
            Which of them are skipped.
        precision
            Of their attention.
        given
            Arguments that are given, none of them None.
        watch
            Who looks on.
        """
        with self.sharing.together():
            progress, cancel = self.sharing.watched(watch.progress, watch.cancel)
            check_cancelled(cancel)
            callback, denoiser = watch.callback, self.denoiser
            asked = given if callback is None else {**given, "callback_on_step_end": callback}
            pipe = self.pipes.for_call(asked)
            check_in_place(self.artifacts, denoiser, pipe)
            arguments = self._arguments(pipe, given)
            steps = step_count(pipe, arguments)
            if caching is not None:
                caching.check_call(pipe, steps, denoiser.components, arguments)
            precisions = precision_per_step(precision, steps)
            planned = check_plan(
                schedule, precisions, pipe, steps, denoiser, allow_dense=self.allow_dense
            )
            arguments.update(callback_tensors(callback))
            model, settings = self.artifacts.model, self.artifacts.settings
            plan = {
                "sparsity": planned,
                "precision": precisions,
                "attention settings": settings,
                "dense_layers": denoiser.dense_layers,
                "cache": caching and (caching.settings, caching.rule),
            }
            callback = self.sharing.prepare(pipe, arguments, callback, plan)
            run = StepRun(
                pipe,
                schedule,
                denoiser.set_sparsity,
                from_sigmas=model.timesteps_are_sigmas,
                precision=precision,
                set_precision=denoiser.set_precision,
                sparse=denoiser.sparse,
                why_dense=functools.partial(why_dense, model, settings, denoiser.components[0]),
                allow_dense=self.allow_dense,
                callback=callback,
                clock=StepClock(denoiser.device) if watch.profile else None,
                progress=progress,
                cancel=cancel,
                same_calls=self.sharing.same_calls,
            )
            cache = None
            if caching is not None:
                logger.info("cache: %s", caching.settings)
                cache = caching.cache(model, pipe, self.sharing.decider())
            made = make_frames(
                pipe, denoiser, run, arguments, cache=cache, wanted=self.sharing.first
            )
        if not run.reports():
            raise UnsupportedError(
                f"{type(pipe).__name__} did not call its transformer as a module, so that no "
                "sparsity was set and nothing of its attention is known: use a pipeline that does"
            )
        if made.frames is not None and output_type(pipe, arguments) != "latent":
            say_other_size(pipe, given, made.frames)
        output = PipelineOutput(
            made.frames,
            run.reports(),
            denoiser.name,
            run.timings(),
            made.audio,
            made.audio_rate,
            caching.settings if caching is not None else None,
        )
        if caching is not None:
            logger.info("skipped %d of %d steps: %s", *_skips(output))
        return output

    def _arguments(self, pipe: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the diffusers pipeline, with defaults, read and checked."""
        check_media(pipe, given)
        if "prompt" in given:
            check_packages(pipe)
        given = read_media(given)
        model, size = self.artifacts.model, self.artifacts.size
        any_size = self.artifacts.dynamic or self.denoiser.name == "torch"
        if size is not None and not any_size:
            size = model.clip_of_graph(size, given)
        arguments = complete_arguments(pipe, size, given)
        frames = frames_of_video(pipe, arguments)
        if frames is not None:
            model.check_frames(frames)
        check_size(None if any_size else size, pipe, arguments)
        usual = {name: known.default for name, known in parameters_of(type(pipe)).items()}
        model.check_media({**usual, **arguments}, exported=self.denoiser.name != "torch")
        if self.denoiser.name != "torch":
            text = text_bounds(model, self.denoiser.components)
            fit_text(model, pipe, text, arguments)
            model.check_call({**usual, **arguments}, text_tokens=text)
            for exported in self.denoiser.components:
                backend = getattr(exported, "backend", None)
                profiles = () if backend is None else backend.profiles
                model.check_conditions({**usual, **arguments}, profiles)
        say_stretch(pipe, arguments)
        return arguments


def _skips(output: PipelineOutput) -> tuple[int, int, str]:
    """How many steps were skipped, of how many, and which."""
    named = ", ".join(map(str, output.skipped)) or "none"
    return len(output.skipped), len(output.steps), named
