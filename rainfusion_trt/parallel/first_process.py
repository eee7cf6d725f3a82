"""What the first process alone is asked and told, and how the others learn what came of it.

A callback, what is told of the progress, and the flag that cancels are the first process's. All
processes look at one place after every step: there an error of any of these ends the call of all
of them, after the same exchanges, so that they can make the next clip.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from rainfusion_trt.errors import GenerationCancelled, RainFusionError
from rainfusion_trt.parallel.group_errors import shortly
from rainfusion_trt.runtime.noise import are_equal, default_states, set_default_states
from rainfusion_trt.runtime.steps import Flag, Progress, StepCallback, tensors_of_callback

if TYPE_CHECKING:
    from rainfusion_trt.parallel.team import Team

_Plain = dict[tuple[str, str], Any]
"""Attributes by the component they are of, the pipeline itself being ``""``, and their name."""
_GUIDER = "guider"  # which holds the guidance scale of a pipeline that has none of its own


class FirstProcess:
    """The flag, progress and callback of a generation's first process, for all of them.

    A flag to those who only look: `is_set` has to be called equally often in all processes.

    Parameters
    ----------
    team
        The processes.
    flag
        Of this one; that of the first counts.
    """

    pipe: Any = None
    """The diffusers pipeline that makes the clip, once it is known."""

    def __init__(self, team: Team, flag: Flag | None) -> None:
        self._team = team
        self._flag = flag
        self._error: Exception | None = None  # of this process, to be raised in all

    def is_set(self) -> bool:
        """Whether the first process's flag is set; an interruption of its pipeline reaches all.

        Raises
        ------
        GenerationCancelled, RainFusionError, Exception
            What its callback or progress has raised: itself there, its first line in the others.
        """
        is_set, stop, failed, cancelled = self._team.agree(self._said)
        if hasattr(self.pipe, "_interrupt"):  # by whom it was: callback, progress, another thread
            self.pipe._interrupt = stop
        if failed is None:
            return is_set
        if self._error is not None:
            raise self._error
        if cancelled:
            raise GenerationCancelled(failed)
        raise RainFusionError(f"process 0 ended the call by its callback or progress: {failed}")

    def progress(self, told: Progress | None) -> Progress | None:
        """What is told of the progress, whose errors come at the end of the step."""
        if told is None or not self._team.first:
            return None

        def tell(done: int, steps: int) -> None:
            with self._kept():
                told(done, steps)

        return tell

    def callback(self, callback: StepCallback) -> StepCallback:
        """A callback that runs in the first process and whose changes reach all.

        These are tensors, numbers and texts of the pipeline, such as its guidance scale, and the
        noise that it has drawn.
        """

        def call(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            results: dict[str, Any] = dict(tensors)
            device = self._team.device

            def ask() -> tuple[list[str], _Plain, Any]:
                before, noise = _plain(pipe), default_states(device)
                with self._kept():
                    given = callback(pipe, step, timestep, tensors)
                    results.update(tensors_of_callback(given))
                now = _plain(pipe)
                changed = {k: v for k, v in now.items() if k not in before or before[k] != v}
                drawn = default_states(device)
                return sorted(results), changed, None if are_equal(drawn, noise) else drawn

            names, changed, drawn = self._team.agree(ask)
            for (component, name), value in changed.items():
                setattr(getattr(pipe, component) if component else pipe, name, value)
            if drawn is not None:
                set_default_states(drawn, device)
            for name in names:
                results[name] = self._from_first(results.get(name))
            return results

        return call

    def _said(self) -> tuple[bool, bool, str | None, bool]:
        is_set = self._flag is not None and self._flag.is_set()
        stop, error = bool(getattr(self.pipe, "_interrupt", False)), self._error
        failed = None if error is None else shortly(error) or type(error).__name__
        return is_set, stop, failed, isinstance(error, GenerationCancelled)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """A context whose first error waits until all processes look."""
        try:
            yield
        except Exception as error:
            self._error = self._error or error

    def _from_first(self, value: Any) -> Any:
        """A tensor of the first process; what is none is the same in all."""
        is_tensor = torch.is_tensor(value)
        shape = self._team.agree(lambda: (tuple(value.shape), value.dtype) if is_tensor else None)
        if shape is None:
            return value
        if not self._team.first and (not is_tensor or (tuple(value.shape), value.dtype) != shape):
            value = torch.empty(shape[0], dtype=shape[1], device=self._team.device)
        # A callback may give one of another device, for which processes would meet elsewhere.
        value = value.to(self._team.device).contiguous()
        dist.broadcast(value, src=0)
        return value


def _plain(pipe: Any) -> _Plain:
    """The attributes of a pipeline and of its guider that can be sent as they are, copied."""
    guider = getattr(pipe, _GUIDER, None)
    owners = {"": pipe} if guider is None else {"": pipe, _GUIDER: guider}
    return {
        (component, name): copy.deepcopy(value)
        for component, owner in owners.items()
        for name, value in vars(owner).items()
        if _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, value)) and all(map(_is_plain, value.values()))
    return value is None or isinstance(value, (bool, int, float, str))
