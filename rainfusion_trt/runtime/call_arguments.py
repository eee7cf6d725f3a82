"""Arguments of one `Pipeline` call, completed and checked before any work starts."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize

Generators = torch.Generator | list[torch.Generator] | None


def choose_generator(generator: Generators, seed: int | None) -> Generators:
    """The generator, or one of the seed, on the CPU so that every device gets the same noise."""
    if seed is None:
        return generator
    if generator is not None:
        raise InvalidInputError("give generator or seed, not both")
    check_seed(seed)
    return torch.Generator("cpu").manual_seed(seed)


def check_seed(seed: Any) -> None:
    """Raise InvalidInputError for what torch takes as no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise InvalidInputError(f"seed is {seed!r}: give an integer from -2^63 to 2^64 - 1")


_SIZES = ("num_frames", "height", "width")
_GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuse what diffusers would take for "not given", or for a number that it is not.

    Raises
    ------
    InvalidInputError
        A size that is no integer from 1 on, or a guidance scale that is not finite.
    """
    for name in _SIZES:
        value = arguments.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(
                f"{name} is {value!r}: give an integer from 1 on, or leave it out"
            )
    for name in _GUIDANCE:
        value = arguments.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidInputError(f"{name} is {value!r}: give a finite number")


def output_type(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """What form of frames is asked for."""
    parameter = _parameters(pipe).get("output_type")
    return arguments.get("output_type", parameter.default if parameter else None)


@contextmanager
def refusals_of(pipe: Any) -> Iterator[None]:
    """A context in which what a diffusers pipeline refuses of its arguments is our error."""
    try:
        yield
    except (ValueError, TypeError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if frames[-1].name != "check_inputs":
            raise
        raise InvalidInputError(f"{type(pipe).__name__}: {error}") from error


def complete_arguments(
    pipe: Any, size: VideoSize | None, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What was given, and the clip size and text length the graph was exported for.

    Arguments that are None are left out, so that the diffusers pipeline's own defaults apply.
    """
    defaults: dict[str, Any] = {}
    if size is not None:
        defaults = {"num_frames": size.frames, "height": size.height, "width": size.width}
    text_length = pipe.transformer.config.get("max_text_seq_length")
    if text_length and "max_sequence_length" in _parameters(pipe):
        defaults["max_sequence_length"] = text_length
    given = {name: value for name, value in arguments.items() if value is not None}
    check_numbers(given)
    if "negative_prompt_embeds" in given:  # AllegroPipeline's default, an empty text, would clash
        given.setdefault("negative_prompt", None)
    return {**defaults, **given}


def check_size(size: VideoSize | None, arguments: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if another clip is asked for than the one the graph is fixed to."""
    if size is None:
        return
    asked = VideoSize(arguments["num_frames"], arguments["height"], arguments["width"])
    if asked != size:
        raise InvalidInputError(
            f"{asked} (frames x height x width) was asked for, but this model was exported for "
            f"{size} only: ask for that size, or export with dynamic shapes"
        )


def takes_callback(pipe: Any) -> bool:
    """Whether the diffusers pipeline calls back after every step."""
    return "callback_on_step_end" in _parameters(pipe)


def check_known(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if the diffusers pipeline has no such argument."""
    known = _parameters(pipe)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return
    for name in arguments:
        if name not in known:
            guider = name == "guidance_scale" and hasattr(pipe, "guider")
            raise InvalidInputError(
                f"{type(pipe).__name__} takes no {name}"
                + (": set pipe.guider of this pipeline instead" if guider else "")
            )


def step_count(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """Number of denoising steps these arguments ask for."""
    for name in ("timesteps", "sigmas"):
        if arguments.get(name) is not None:
            return len(arguments[name])
    default = _parameters(pipe)["num_inference_steps"].default
    steps = arguments.get("num_inference_steps", default)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidInputError(f"num_inference_steps is {steps!r}: give an integer from 1 on")
    return steps


def callback_tensors(callback: Any) -> dict[str, Any]:
    """What diffusers reads off its own callback classes, which ours stands before."""
    from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return {"callback_on_step_end_tensor_inputs": callback.tensor_inputs}
    return {}


def _parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(type(pipe).__call__).parameters
