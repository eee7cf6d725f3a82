"""Runs a diffusers pipeline once, each of its steps watched, and checks what comes out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rainfusion_trt.runtime.call_arguments import output_type, refusals_of, takes_callback
from rainfusion_trt.runtime.denoiser import Denoiser
from rainfusion_trt.runtime.finite import check_audio, check_frames
from rainfusion_trt.runtime.steps import StepRun
from rainfusion_trt.step_cache.cache import StepCache

logger = logging.getLogger("rainfusion_trt")


class Made(NamedTuple):
    """What a call of a diffusers pipeline gave; see `PipelineOutput`."""

    frames: Any
    audio: Any = None
    audio_rate: int | None = None


def say_other_size(pipe: Any, asked: Mapping[str, Any], frames: Any) -> None:
    """Warn of clips of another size or number than was asked for.

    Pipelines round, and several have one video for a prompt whatever is asked; not all say it.

    Parameters
    ----------
    pipe
        What made it.
    asked : mapping
        Arguments of the call that were given.
    frames
        As `Made` has them; of latents nothing is known.
    """
    prompt = asked.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) else 1
    found: dict[str, int] = {}
    if "prompt_embeds" not in asked:
        found["num_videos_per_prompt"] = len(frames) // prompts
    if isinstance(frames, list):
        image = frames[0][0]
        found |= {"num_frames": len(frames[0]), "height": image.height, "width": image.width}
    elif getattr(frames, "ndim", 0) == 5 and 3 in (frames.shape[2], frames.shape[-1]):
        sides = frames.shape[2:4] if isinstance(frames, np.ndarray) else frames.shape[3:]
        found |= zip(("num_frames", "height", "width"), (frames.shape[1], *sides), strict=True)
    other = [name for name in found if asked.get(name, found[name]) != found[name]]
    for name in other:
        logger.warning(
            "%s=%d was asked for, and %s has made %d",
            name,
            asked[name],
            type(pipe).__name__,
            found[name],
        )


def make_frames(
    pipe: Any,
    denoiser: Denoiser,
    run: StepRun,
    arguments: dict[str, Any],
    *,
    cache: StepCache | None = None,
    wanted: bool = True,
) -> Made:
    """What a diffusers pipeline gives, with its frames in the form that was asked for.

    Without frames where they are not `wanted`, as in all processes of a run but its first.

    Raises
    ------
    InvalidInputError
        The pipeline refuses its arguments.
    NotFiniteError
        The frames or the sound hold NaN or infinity.
    """
    # Images have no NaN left in them, only black: they are made of the frames once checked.
    images = output_type(pipe, arguments) == "pil"
    if images:
        arguments = {**arguments, "output_type": "np"}
    try:
        with (
            denoiser.observe(run.before_call, run.after_call, cache),
            run.counting(by_callback=takes_callback(pipe)) as counting,
            refusals_of(pipe),
        ):
            output = pipe(**arguments, **counting)
    except BaseException:
        # At its end a call gives the device's memory back; one that was ended has to, too.
        pipe.maybe_free_model_hooks()
        raise
    audio = getattr(output, "audio", None)
    if not wanted:
        return Made(None)
    check_frames(output.frames)
    if audio is not None:
        check_audio(audio)
    rate = None if audio is None else pipe.vocoder.config.output_sampling_rate
    if not images:
        return Made(output.frames, audio, rate)
    from diffusers.image_processor import VaeImageProcessor

    frames = [VaeImageProcessor.numpy_to_pil(clip) for clip in output.frames]
    return Made(frames, audio, rate)
