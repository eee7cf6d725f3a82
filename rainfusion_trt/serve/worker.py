"""The worker: one request in, one video file out. It knows nothing of jobs, queues or HTTP."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from rainfusion_trt.errors import InvalidInputError

OnStep = Callable[[int, int], None]
"""Called as ``on_step(done, steps)`` after every step. What it raises ends the generation."""

Media = Mapping[str, bytes]
"""Files that a video starts from, by the argument of `Pipeline`: "image", "last_image"."""

NO_MEDIA: Media = MappingProxyType({})


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Bounds = tuple[int, int]


class SizeRange(_Record):
    """Clips between two sizes: the smallest and the largest of each."""

    frames: Bounds
    height: Bounds
    width: Bounds


class ModelDescription(_Record):
    """What a worker makes videos with, and which it takes.

    Attributes
    ----------
    model : str
        Name in the registry.
    backend : str
        Where its transformer runs.
    width, height, frames, fps, steps, guidance
        What a request gets that does not say otherwise. None: the model takes no guidance scale.
    fixed_size : bool
        Whether no other width, height and number of frames can be had.
    pixels_step : int
        Width and height are multiples of it.
    frames_first, frames_step : int
        The smallest number of frames, and the step to the next.
    ranges : tuple of SizeRange
        A clip lies within one of them; none: there are no bounds.
    methods : tuple of str
        Kinds of sparse attention that can be had, the usual one first; none: attention is dense.
    preset : str or None
        What a request gets that names neither preset, nor sparsity, nor method.
    caches : tuple of str
        Ways to skip steps that can be had; "off" is no such way.
    cache_steps : int or None
        The number of steps, as requests name it, that "mag" was calibrated for.
    cache : str or None
        What a request gets that does not name a cache; None: every step runs.
    starts : tuple of tuple of str
        What a video may start from beside the text: each is a set of names of `Media` that a
        request may bring, and () is the text alone.
    takes_negative_prompt : bool
        Whether the model is made for one.
    """

    model: str
    backend: str
    width: int
    height: int
    frames: int
    fps: int
    steps: int
    guidance: float | None
    fixed_size: bool = False
    pixels_step: int = 16
    frames_first: int = 1
    frames_step: int = 4
    ranges: tuple[SizeRange, ...] = ()
    methods: tuple[str, ...] = ()
    preset: str | None = None
    caches: tuple[str, ...] = ()
    cache_steps: int | None = None
    cache: str | None = None
    starts: tuple[tuple[str, ...], ...] = ((),)
    takes_negative_prompt: bool = True


class GenerationRequest(_Record):
    """One video to make, complete and checked against a `ModelDescription`.

    Attributes
    ----------
    guidance : float or None
        None where the model takes none.
    preset, sparsity, method, cache, cache_threshold
        As for `rainfusion_trt.Pipeline`; None leaves them to the worker.
    """

    prompt: str
    negative_prompt: str | None = None
    width: int
    height: int
    frames: int
    fps: int
    seed: int
    steps: int
    guidance: float | None = None
    preset: str | None = None
    sparsity: float | None = None
    method: str | None = None
    cache: str | None = None
    cache_threshold: float | None = None


class StepRan(_Record):
    """What one denoising step ran.

    Attributes
    ----------
    step : int
        From 0.
    sparsity : float
        The one in force; 0 where attention was dense, or the step was skipped.
    precision : "16bit", "8bit" or None
        Of attention; None where none ran.
    density : float or None
        Computed share of the token pairs; None where an engine does not report it.
    sparse_attentions, dense_attentions, skipped_attentions : int
        Self-attentions over all calls of the transformer in this step; a cache skips whole calls.
    milliseconds, transformer_milliseconds : float or None
        The whole step, and its calls of the transformer.
    """

    step: int
    sparsity: float
    density: float | None
    sparse_attentions: int
    dense_attentions: int
    skipped_attentions: int = 0
    precision: str | None = None
    milliseconds: float | None = None
    transformer_milliseconds: float | None = None


class Ran(_Record):
    """What was run, measured or read off the result, and never copied from what was asked.

    Attributes
    ----------
    method : str or None
        Of the sparse attentions; None where all were dense.
    cache : str or None
        By what steps could be skipped; None where all had to run. What was skipped is in `steps`.
    cache_threshold : float or None
        Of that.
    width, height, frames
        Of the video.
    guidance : float or None
        That the pipeline used; None where it does not say.
    generate_seconds, encode_seconds : float
        From text to frames, and from frames to the file.
    """

    model: str
    backend: str
    device: str
    method: str | None
    seed: int
    width: int
    height: int
    frames: int
    fps: int
    guidance: float | None
    steps: tuple[StepRan, ...]
    generate_seconds: float
    encode_seconds: float
    cache: str | None = None
    cache_threshold: float | None = None


class WorkerGone(RuntimeError):  # noqa: N818  (no error of the job)
    """What computes has died under a job, which is then another worker's; this one has a fault."""


class Worker(Protocol):
    """Makes videos, one at a time."""

    def describe(self) -> ModelDescription:
        """What it makes videos with."""

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        """Make a video and write it to `output`, an .mp4 that is not there yet.

        Parameters
        ----------
        request
            What to make.
        media
            PNG files, one of `ModelDescription.starts`.
        output
            The file.
        on_step
            To be called after every denoising step.

        Raises
        ------
        RainFusionError
            The request does not fit.
        WorkerGone
            The job is not to blame, and is to be run by another worker.
        Exception
            Whatever `on_step` raises: the worker can be used again afterwards.
        """

    def fault(self) -> str | None:
        """Why this worker can make no more videos and has to be replaced; None while it can."""


def make_worker(factory: str, options: Mapping[str, Any], *, gpus: int) -> Worker:
    """The worker of a factory ``"package.module:callable"``, called as ``f(**options, gpus=gpus)``.

    Raises
    ------
    InvalidInputError
        There is no such callable.
    """
    module, _, name = factory.partition(":")
    try:
        made = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidInputError(
            f"worker factory {factory!r} cannot be imported ({error}): give package.module:callable"
        ) from error
    return made(**options, gpus=gpus)
