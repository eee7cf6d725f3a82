"""``StepCache``: answers calls of a transformer in its place, within one generation.

It stands around the transformer's call, so that it does not matter what runs there. Of a step that
is skipped every call is answered with what the transformer gave the last time that this call of a
step ran, or with its input plus what was added to it then. The first call of a step decides for all
of them: both halves of guidance, whether a batch or two calls, and what else a pipeline calls for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.runtime.report import CallReport, Moment
from rainfusion_trt.step_cache.rules import Rule, Tensors, Timesteps, rule_of
from rainfusion_trt.step_cache.settings import CacheSettings

Decide = Callable[[int, Callable[[], bool]], bool]
"""The step, from 0, and what this process would do -> what all processes do."""

_Name = tuple[str | None, int]
"""A call in its step: the cache context that it is in, and how many there were in it before."""


def alone(step: int, make: Callable[[], bool]) -> bool:
    """The decision of a process that has no others beside it."""
    return make()


@dataclass(frozen=True)
class _Noisy:
    """The part of an input that is noisy latents: all of it, or its first channels.

    What pipelines put beside them (the latents of an image, masks) does not change from step to
    step and is nothing that the output could be added to.
    """

    name: str
    shape: tuple[int, ...]  # of the whole input
    axis: int
    channels: int

    @classmethod
    def of(cls, name: str, given: Tensor, output: Tensor) -> _Noisy | None:
        """That which has the output's shape; None where there is none."""
        if given.dim() != output.dim():
            return None
        others = [i for i in range(given.dim()) if given.shape[i] != output.shape[i]]
        axis = others[0] if others else 0
        if len(others) > 1 or output.shape[axis] > given.shape[axis]:
            return None
        return cls(name, tuple(given.shape), axis, output.shape[axis])

    def take(self, call: Mapping[str, Any]) -> Tensor:
        return call[self.name].narrow(self.axis, 0, self.channels)

    def fits(self, call: Mapping[str, Any]) -> bool:
        return tuple(call[self.name].shape) == self.shape


@dataclass(frozen=True)
class _Kept:
    """What a call of a step, the first or a later one, has left.

    Attributes
    ----------
    noisy
        Where its noisy latents were, one for each output.
    outputs
        What it gave; None where residuals are kept instead.
    residuals
        Output minus noisy latents, in the latents' dtype, and the dtypes of the outputs.
    attentions
        How many self-attentions it ran.
    """

    noisy: tuple[_Noisy, ...]
    outputs: Tensors | None
    residuals: tuple[tuple[Tensor, torch.dtype], ...]
    attentions: int

    def fits(self, call: Mapping[str, Any]) -> bool:
        return all(part.fits(call) for part in self.noisy)

    def latents(self, call: Mapping[str, Any]) -> Tensors:
        return tuple(part.take(call) for part in self.noisy)

    def answer(self, call: Mapping[str, Any]) -> Tensors:
        """New tensors, which a pipeline may go on to compute in."""
        if self.outputs is not None:
            return tuple(output.clone() for output in self.outputs)
        pairs = zip(self.latents(call), self.residuals, strict=True)
        return tuple((x.float() + added.float()).to(dtype) for x, (added, dtype) in pairs)


class StepCache:
    """The cache of one generation; whatever it holds goes with it.

    Parameters
    ----------
    settings
        Which steps always run, and how many are skipped in a row.
    model
        Says what is an output, and of which input.
    rule
        By default that of the settings.
    decide
        Makes one decision of those of several processes.
    timesteps
        Those of the scheduler, by their number; None where nobody asks.
    """

    def __init__(
        self,
        settings: CacheSettings,
        model: VideoModel,
        *,
        rule: Rule | None = None,
        decide: Decide = alone,
        timesteps: Callable[[int], Timesteps] | None = None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._rule = rule_of(settings) if rule is None else rule
        self._decide = decide
        self._timesteps = timesteps
        self._transformer: Any = None  # the one whose turn it is
        self._moment: Moment | None = None
        self._context: str | None = None  # of the calls that come
        self._counts: dict[str | None, int] = {}  # of the calls of this step, by their context
        self._begin(None)

    def named(self, context: str | None) -> None:
        """What the next calls are for, where the pipeline says so by a cache context."""
        self._context = context

    def call(
        self,
        transformer: Any,
        moment: Moment,
        call: Mapping[str, Any],
        run: Callable[[], Any],
        report: Callable[[], CallReport],
    ) -> tuple[Any, CallReport]:
        """The answer to a call of a transformer, and what ran for it.

        Parameters
        ----------
        transformer
            The one that is called; one at a time is known of.
        moment
            Where in the generation.
        call
            Its arguments by name.
        run
            Runs it.
        report
            What it ran, asked afterwards.

        Raises
        ------
        UnsupportedError
            An output that is of no input's shape.
        """
        is_other = transformer is not self._transformer
        is_new = is_other or self._moment is None or moment.done != self._moment.done
        # A pipeline may leave out the first steps of a segment, so that it begins with a later one.
        begins = self._moment is None or (is_new and moment.step <= self._moment.step)
        if begins and self._timesteps is not None:
            self._rule.scheduled(functools.partial(self._timesteps, moment.steps))
        if is_other or begins:
            self._begin(transformer)
        if is_new and self._moment is not None and moment.done > self._moment.done + 1:
            self._kept.clear()  # another process made a step's calls, who knows if they ran
        self._moment = moment
        if is_new:
            self._counts = {}
        name = (self._context, self._counts.get(self._context, 0))
        self._counts[self._context] = name[1] + 1
        if is_new:
            self._skip = self._decision(moment, name, call)
            if not self._skip:
                self._kept.clear()  # what this step does not call for is too old for the next
        kept = self._kept.get(name)
        if self._skip and kept is not None and kept.fits(call):
            return self._answered(kept, call)
        output = run()
        ran = report()
        self._keep(name, moment, call, output, ran, first=is_new)
        return output, ran

    def _begin(self, transformer: Any) -> None:
        """A generation, a segment of one, or the turn of another transformer begins."""
        self._transformer = transformer
        self._kept: dict[_Name, _Kept] = {}  # of the last step that ran, and what ran since
        self._skip = False
        self._skipped = 0  # steps in a row
        self._latents: Tensors | None = None  # of the first call of this step
        self._rule.reset()

    def _decision(self, moment: Moment, name: _Name, call: Mapping[str, Any]) -> bool:
        """Whether this step is skipped, by its first call."""
        first = self._kept.get(name)
        if self._kept and (first is None or not first.fits(call)):
            # A clip of another size, or a step that begins otherwise: nothing fits any more.
            self._begin(self._transformer)
            first = None
        # Copied, as a pipeline may go on to compute in the place of its latents.
        latents = None if first is None else tuple(x.clone() for x in first.latents(call))
        self._latents = latents
        if self._settings.always(moment.step, moment.steps - moment.never):
            skip = False  # in every process, so that none need say it
        else:
            skip = self._decide(moment.done, lambda: self._would_skip(moment.step, latents))
        self._skipped = self._skipped + 1 if skip else 0
        if latents is not None:
            self._rule.saw(latents)
        return skip

    def _would_skip(self, step: int, latents: Tensors | None) -> bool:
        if latents is None or self._skipped >= self._settings.max_skips:
            return False
        return self._rule.skips(step, latents)

    def _answered(self, kept: _Kept, call: Mapping[str, Any]) -> tuple[Any, CallReport]:
        tensors = kept.answer(call)
        wants_class = call.get("return_dict", True)
        output = self._model.result(tensors) if wants_class else tensors
        return output, CallReport(0, 0, skipped=kept.attentions, ran=False)

    def _keep(
        self,
        name: _Name,
        moment: Moment,
        call: Mapping[str, Any],
        output: Any,
        ran: CallReport,
        *,
        first: bool,
    ) -> None:
        outputs = tuple(output[i] for i in range(len(self._model.outputs)))
        noisy = []
        for given, tensor in zip(self._model.noisy_inputs, outputs, strict=True):
            part = _Noisy.of(given, call[given], tensor)
            if part is None:
                raise UnsupportedError(
                    f"cache= compares noisy latents with outputs, and of {self._model.name} the "
                    f"output {list(tensor.shape)} is not of the shape of {given} "
                    f"{list(call[given].shape)}: leave cache= out"
                )
            noisy.append(part)
        latents = tuple(part.take(call) for part in noisy)
        attentions = ran.routed + ran.dense + ran.skipped
        # Copied, as a pipeline may go on to compute in the place of what it was given.
        if self._settings.reuse == "output":
            outputs = tuple(y.clone() for y in outputs)
            self._kept[name] = _Kept(tuple(noisy), outputs, (), attentions)
        else:
            pairs = zip(latents, outputs, strict=True)
            residuals = tuple(((y.float() - x.float()).to(x.dtype), y.dtype) for x, y in pairs)
            self._kept[name] = _Kept(tuple(noisy), None, residuals, attentions)
            outputs = tuple(y.clone() for y in outputs) if first else outputs
        if not first:
            return
        if self._latents is None:  # the first step, of which no shapes were known
            self._latents = tuple(x.clone() for x in latents)
            self._rule.saw(self._latents)
        self._rule.ran(moment.step, self._latents, outputs)
