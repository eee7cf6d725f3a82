"""Arguments of one `Pipeline` call, completed and checked before any work starts."""

from __future__ import annotations

import inspect
import math
import traceback
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch

from rainfusion_trt.argument_types import has_half_character, shown
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize
from rainfusion_trt.runtime.media import frames_of_video, size_of_image
from rainfusion_trt.runtime.pipes import parameters_of

Generators = torch.Generator | list[torch.Generator] | tuple[torch.Generator, ...] | None
_GENERATOR = torch.Generator
_FORMS = ("np", "pt", "pil", "latent")  # of frames, in every video pipeline of diffusers


def choose_generator(generator: Generators, seed: int | None) -> Generators:
    """The generator, or one of the seed, on the CPU so that every device gets the same noise."""
    given = generator if isinstance(generator, (list, tuple)) else [generator]
    if generator is not None and not (given and all(isinstance(g, _GENERATOR) for g in given)):
        raise InvalidInputError(
            f"generator={shown(generator)}: give a torch.Generator, one for each clip, or a seed"
        )
    if seed is None:
        return list(generator) if isinstance(generator, tuple) else generator  # as diffusers tells
    if generator is not None:
        raise InvalidInputError("give generator or seed, not both")
    check_seed(seed)
    return torch.Generator("cpu").manual_seed(seed)


def check_seed(seed: Any) -> None:
    """Raise InvalidInputError for what torch takes as no seed."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**64:
        raise InvalidInputError(f"seed is {shown(seed)}: give an integer from -2^63 to 2^64 - 1")


_FRAMES = ("num_frames", "segment_frame_length")  # what pipelines call the frames of a graph
_COUNTS = (*_FRAMES, "height", "width", "max_sequence_length", "num_videos_per_prompt")
_TEXTS = ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")
_ROWS = ("timesteps", "sigmas")  # instead of a number of steps
_GUIDANCE = ("guidance_scale", "guidance_scale_2", "true_cfg_scale")


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuse what diffusers would take for "not given", or for a number that it is not.

    Raises
    ------
    InvalidInputError
        A size or count that is no integer from 1 on, a guidance scale that is not finite, or a
        strength outside of [0, 1].
    """
    for name in _COUNTS:
        value = arguments.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidInputError(
                f"{name} is {shown(value)}: give an integer from 1 on, or leave it out"
            )
    for name in _GUIDANCE:
        value = arguments.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            raise InvalidInputError(f"{name} is {shown(value)}: give a finite number")
    for name in ("strength", "denoise_strength"):
        value = arguments.get(name, 1.0)
        of_each_condition = name == "strength" and isinstance(value, list)
        if not of_each_condition and not _is_share(value):
            raise InvalidInputError(f"{name} is {shown(value)}: give a number in [0, 1]")


def _check_kinds(arguments: Mapping[str, Any]) -> None:
    """Refuse what diffusers would find out after the work, or by an error of somewhere else."""
    form = arguments.get("output_type", _FORMS[0])
    if not isinstance(form, str) or form not in _FORMS:
        raise InvalidInputError(f"output_type is {shown(form)}: give one of {', '.join(_FORMS)}")
    latents = arguments.get("latents")
    if latents is not None and not torch.is_tensor(latents):
        raise InvalidInputError(f"latents is of {type(latents).__name__}: give a tensor")
    for name in _TEXTS:
        given = arguments.get(name, "")
        texts = given if isinstance(given, list) else [given]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InvalidInputError(f"{name} is {shown(given)}: give a text, or one for each clip")
        if any(map(has_half_character, texts)):
            raise InvalidInputError(
                f"{name} is {shown(given)}, which holds half a character: give it in UTF-8"
            )
    for name in _ROWS:
        row = arguments.get(name, ())
        if not isinstance(row, Sized) or getattr(row, "ndim", 1) == 0:
            raise InvalidInputError(f"{name} is {shown(arguments[name])}: give one for each step")


def _check_rows(pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Refuse timesteps and sigmas that diffusers would refuse once the texts are encoded.

    Raises
    ------
    InvalidInputError
        Both of them, none at all, or a scheduler that takes none of the user's.
    """
    given = [name for name in _ROWS if arguments.get(name) is not None]
    if len(given) > 1:
        raise InvalidInputError(f"give {' or '.join(given)}, not both")
    scheduler = getattr(pipe, "scheduler", None)
    for name in given:
        if not len(arguments[name]):
            raise InvalidInputError(f"{name} is empty: give one for each step, or leave it out")
        if scheduler is None or name in inspect.signature(scheduler.set_timesteps).parameters:
            continue
        raise InvalidInputError(
            f"{name} is given, and {type(scheduler).__name__} takes none of the caller's: give "
            "num_inference_steps, or set another pipe.scheduler"
        )


def _check_counts(known: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Refuse texts and generators of another number than the clips, found after much of the work.

    Raises
    ------
    InvalidInputError
        The message names both numbers.
    """
    if "prompt_segments" in known:  # a list of prompts is of one clip there
        return
    prompt, embeds = arguments.get("prompt"), arguments.get("prompt_embeds")
    count = len(prompt) if isinstance(prompt, list) else 1
    if prompt is None and torch.is_tensor(embeds):
        count = embeds.shape[0]
    for name in _TEXTS[1:]:
        texts = arguments.get(name)
        if isinstance(texts, list) and (len(texts) != count or isinstance(prompt, str)):
            of = "one prompt" if isinstance(prompt, str) else f"{count} prompts"
            raise InvalidInputError(
                f"{name} is a list of {len(texts)} for {of}: give a text, or as many as prompts"
            )
    clips = count * arguments.get("num_videos_per_prompt", 1)
    generators = arguments.get("generator")
    if isinstance(generators, list) and len(generators) != clips:
        raise InvalidInputError(
            f"generator is a list of {len(generators)} for {clips} clips: give one, or one for each"
        )


def _is_share(value: Any) -> bool:
    number = isinstance(value, Real) and not isinstance(value, bool)
    return number and 0.0 <= float(value) <= 1.0


def output_type(pipe: Any, arguments: Mapping[str, Any]) -> Any:
    """What form of frames is asked for."""
    parameter = parameters_of(type(pipe)).get("output_type")
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
        reason = " ".join(str(error).split())
        raise InvalidInputError(f"{type(pipe).__name__}: {reason}") from error


def complete_arguments(
    pipe: Any, size: VideoSize | None, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What was given, and the clip size and text length the graph was exported for.

    What a pipeline takes no argument for, and what nobody gives, is the diffusers pipeline's own.
    """
    known = parameters_of(type(pipe))
    defaults: dict[str, Any] = {}
    if size is not None:
        defaults = {**dict.fromkeys(_FRAMES, size.frames), "height": size.height}
        defaults["width"] = size.width
    text_length = pipe.transformer.config.get("max_text_seq_length")
    if text_length:
        defaults["max_sequence_length"] = text_length
    check_numbers(given)
    _check_kinds(given)
    _check_counts(known, given)
    _check_rows(pipe, given)
    arguments = {**{name: value for name, value in defaults.items() if name in known}, **given}
    if "negative_prompt_embeds" in given:  # AllegroPipeline's default, an empty text, would clash
        arguments.setdefault("negative_prompt", None)
    if "generator" in given and "seed" in known:
        # Of LTX's pipeline for long clips: its own seed, 0 by default, goes before a generator.
        arguments.setdefault("seed", None)
    return arguments


def check_size(size: VideoSize | None, pipe: Any, arguments: Mapping[str, Any]) -> None:
    """Raise InvalidInputError if another clip is asked for than the one the graph is fixed to."""
    if size is None:
        return
    frames = next((arguments[name] for name in _FRAMES if name in arguments), None)
    frames = frames or frames_of_video(pipe, arguments) or size.frames
    height, width = size_of_image(pipe, arguments) or (size.height, size.width)
    asked = VideoSize(frames, arguments.get("height", height), arguments.get("width", width))
    if asked == size:
        return
    given = [name for name in ("video", "image") if name in arguments]
    whence = f"; what the pipeline takes no argument for is that of the {given[0]}" if given else ""
    raise InvalidInputError(
        f"{asked} (frames x height x width) was asked for, but this model was exported for "
        f"{size} only: ask for that size, or export with dynamic shapes (--dynamic){whence}"
    )


def takes_callback(pipe: Any) -> bool:
    """Whether the diffusers pipeline calls back after every step."""
    return "callback_on_step_end" in parameters_of(type(pipe))


def step_count(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """Number of denoising steps these arguments ask for.

    A scheduler of second order, such as Heun's, calls the transformer twice between two noise
    levels and once at the end: pipelines count each as a step.
    """
    steps = _intervals(pipe, arguments)
    return 2 * steps - 1 if _is_second_order(getattr(pipe, "scheduler", None)) else steps


def asked_steps(scheduler: Any, steps: int) -> int:
    """The `num_inference_steps` that is so many denoising steps, where nothing leaves some out.

    Of a scheduler of diffusers, or of its class.
    """
    return (steps + 1) // 2 if _is_second_order(scheduler) else steps


def _is_second_order(scheduler: Any) -> bool:
    return getattr(scheduler, "order", 1) == 2


def _intervals(pipe: Any, arguments: Mapping[str, Any]) -> int:
    """How many steps between two noise levels."""
    known = parameters_of(type(pipe))
    steps = arguments.get("num_inference_steps", known["num_inference_steps"].default)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise InvalidInputError(f"num_inference_steps is {shown(steps)}: give an integer from 1 on")
    for name in _ROWS:
        if arguments.get(name) is not None:
            steps = len(arguments[name])
            break
    # Those that start from a noisy video leave out the steps before it. Where there are both
    # arguments, `strength` is another thing.
    name = "denoise_strength" if "denoise_strength" in known else "strength"
    if name not in known or not hasattr(pipe, "get_timesteps"):
        return steps
    strength = arguments.get(name, known[name].default)
    if int(steps * strength) < 1:
        raise InvalidInputError(
            f"{name}={strength:g} leaves none of {steps} steps: give a larger {name} or more steps"
        )
    return int(steps * strength)


def callback_tensors(callback: Any) -> dict[str, Any]:
    """What diffusers reads off its own callback classes, which ours stands before."""
    from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

    if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
        return {"callback_on_step_end_tensor_inputs": callback.tensor_inputs}
    return {}
