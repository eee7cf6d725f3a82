"""What a client may send, and what becomes of it: a complete, checked `GenerationRequest`."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from typing import Annotated, Any

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
    model_validator,
)

from rainfusion_trt.argument_types import has_half_character
from rainfusion_trt.console import one_line
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import field_errors, in_one_line
from rainfusion_trt.presets import PRESETS, preset_of
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.media import check_start
from rainfusion_trt.serve.settings import Limits
from rainfusion_trt.serve.worker import GenerationRequest, Media, ModelDescription
from rainfusion_trt.step_cache.settings import OFF
from rainfusion_trt.video import check_fps

_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
_SEEDS = 2**32  # of those that the service chooses: short enough to be typed

Positive = Annotated[int, Field(ge=1)]


_ALSO = {"frames": "num_frames", "steps": "num_inference_steps", "guidance": "guidance_scale"}
"""Fields that other servers of this interface call by other names."""


def _also(name: str) -> Any:
    names = AliasChoices(name, _ALSO[name])
    return Field(default=None, validation_alias=names, json_schema_extra={"x-also": _ALSO[name]})


class VideoRequest(BaseModel):
    """The body of ``POST /v1/videos``, but for its files.

    Attributes
    ----------
    prompt : str
        What the video shows.
    model : str, optional
        Has to be the one that is served.
    size : str, optional
        ``WIDTHxHEIGHT``; or `width` and `height`.
    seconds : float, optional
        Length, to the nearest that the model makes; or `frames`, exactly.
    fps : int, optional
        Frames per second of the file.
    seed : int, optional
        By default one that is chosen, and told.
    steps, guidance, negative_prompt
        As for diffusers.
    preset, sparsity, method, cache, cache_threshold
        As for `rainfusion_trt.Pipeline`.
    request_id : str, optional
        Repeating a request with the same id gives the same job. Also the header Idempotency-Key.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    prompt: str
    model: str | None = None
    size: str | None = None
    width: Positive | None = None
    height: Positive | None = None
    seconds: Annotated[FiniteFloat, Field(gt=0)] | None = None
    frames: Positive | None = _also("frames")
    fps: Positive | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    steps: Positive | None = _also("steps")
    guidance: FiniteFloat | None = _also("guidance")
    negative_prompt: str | None = None
    preset: str | None = None
    sparsity: Annotated[FiniteFloat, Field(ge=0, lt=1)] | None = None
    method: str | None = None
    cache: str | None = None
    cache_threshold: Annotated[FiniteFloat, Field(ge=0)] | None = None
    request_id: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,200}$")] | None = None

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for name, value in given.items():
                if isinstance(value, bool):
                    raise ValueError(f"{name} is {str(value).lower()}, which no field takes")
            for name, other in _ALSO.items():
                if name in given and other in given:
                    raise ValueError(f"{name} and {other} are the same: give one of them")
        return given

    @classmethod
    def read(cls, fields: dict[str, Any]) -> VideoRequest:
        """Of a JSON object or of a form's texts.

        Raises
        ------
        ServiceError
            It does not fit; names the field.
        """
        for name, value in fields.items():
            if has_half_character(name):
                raise ServiceError("the name of a field holds half a character: send UTF-8")
            if isinstance(value, str) and has_half_character(value):
                name = one_line(name)[:80]
                raise ServiceError(f"{name} holds half a character: send UTF-8", param=name)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise _refused_field(error) from error


def _refused_field(error: ValidationError) -> ServiceError:
    errors = error.errors(include_url=False)
    found = field_errors(errors, whole="the request", known=VideoRequest.model_fields)
    code = "unknown_field" if found[0].unknown else "invalid_value"
    return ServiceError(in_one_line(found), code=code, param=found[0].field or None)


def plan(
    request: VideoRequest, model: ModelDescription, limits: Limits, *, media: Collection[str] = ()
) -> GenerationRequest:
    """The request with everything said, as the model will be asked for it.

    Parameters
    ----------
    media
        Names of the files that come with it.

    Raises
    ------
    ServiceError
        This server does not make such a video.
    """
    for name in ("prompt", "negative_prompt"):
        _check_text(name, getattr(request, name), limits)
    if not request.prompt.strip():
        raise ServiceError("prompt is empty: say what the video shows", param="prompt")
    if request.model not in (None, model.model):
        raise ServiceError(
            f"model {request.model[:80]!r} is not served here: leave it out, or say {model.model}",
            status=404,
            code="model_not_found",
            param="model",
        )
    check_start(media, model)
    fps = _fps(request, model)
    width, height = _pixels(request, model)
    frames = _frames(request, model, fps)
    _check_range(width, height, frames, model)
    if frames * width * height > limits.clip_pixels:
        raise ServiceError(
            f"{frames} frames of {width}x{height} are more than {limits.clip_pixels} pixels: ask "
            "for fewer or smaller frames",
            param="size",
        )
    _check_sparsity(request, model)
    steps = _steps(request, model, limits)
    _check_cache(request, model, steps)
    return GenerationRequest(
        prompt=request.prompt,
        negative_prompt=_negative(request, model),
        width=width,
        height=height,
        frames=frames,
        fps=fps,
        seed=secrets.randbelow(_SEEDS) if request.seed is None else request.seed,
        steps=steps,
        guidance=_guidance(request, model),
        preset=request.preset,
        sparsity=request.sparsity,
        method=request.method,
        cache=request.cache,
        cache_threshold=request.cache_threshold,
    )


def fingerprint(request: VideoRequest, media: Media) -> str:
    """Tells requests apart; repeated ones, whatever their id, have the same."""
    digest = hashlib.sha256(request.model_dump_json(exclude={"request_id"}).encode())
    for name in sorted(media):
        digest.update(hashlib.sha256(name.encode()).digest())
        digest.update(hashlib.sha256(media[name]).digest())
    return digest.hexdigest()


def _check_text(name: str, text: str | None, limits: Limits) -> None:
    if text is None:
        return
    if len(text) > limits.prompt_characters:
        raise ServiceError(
            f"{name} has {len(text)} characters: give up to {limits.prompt_characters}", param=name
        )
    if any(ord(c) < 32 and c not in "\n\r\t" for c in text):
        raise ServiceError(f"{name} has control characters: leave them out", param=name)


def _pixels(request: VideoRequest, model: ModelDescription) -> tuple[int, int]:
    width, height = request.width, request.height
    if request.size is not None:
        match = _SIZE.fullmatch(request.size)
        if match is None:
            raise ServiceError(
                f"size is {request.size[:40]!r}: give WIDTHxHEIGHT, such as "
                f"{model.width}x{model.height}",
                param="size",
            )
        if (width, height) != (None, None):
            raise ServiceError("give size, or width and height, not both", param="size")
        width, height = int(match[1]), int(match[2])
    if (width is None) != (height is None):
        raise ServiceError("give both width and height, or neither", param="width")
    if width is None or height is None:
        return model.width, model.height
    if model.fixed_size and (width, height) != (model.width, model.height):
        raise ServiceError(
            f"{width}x{height}: this server makes {model.width}x{model.height} alone", param="size"
        )
    if width % model.pixels_step or height % model.pixels_step:
        raise ServiceError(
            f"{width}x{height}: {model.model} takes multiples of {model.pixels_step}, such as "
            f"{model.width}x{model.height}",
            param="size",
        )
    return width, height


def _frames(request: VideoRequest, model: ModelDescription, fps: int) -> int:
    first, step = model.frames_first, model.frames_step
    frames = request.frames
    if frames is not None and request.seconds is not None:
        raise ServiceError("give frames or seconds, not both", param="seconds")
    if request.seconds is not None:
        wanted = min(request.seconds * fps, 1e9)
        frames = first + max(0, round((wanted - first) / step)) * step
    if frames is None:
        return model.frames
    if model.fixed_size and frames != model.frames:
        raise ServiceError(
            f"{frames} frames: this server makes clips of {model.frames} frames alone",
            param="frames",
        )
    if frames < first or (frames - first) % step:
        raise ServiceError(
            f"{frames} frames: {model.model} takes {step}k + {first}, such as {model.frames}",
            param="frames",
        )
    return frames


def _check_range(width: int, height: int, frames: int, model: ModelDescription) -> None:
    """Refuse what no engine here was built for."""

    def within(bounds: tuple[int, int], value: int) -> bool:
        return bounds[0] <= value <= bounds[1]

    of_size = [r for r in model.ranges if within(r.width, width) and within(r.height, height)]
    if not model.ranges or any(within(r.frames, frames) for r in of_size):
        return
    if of_size:
        allowed = " or ".join(dict.fromkeys(_span(*r.frames) for r in of_size))
        raise ServiceError(
            f"{frames} frames: of {width}x{height} this server makes {allowed} frames",
            param="frames",
        )
    allowed = " or ".join(
        dict.fromkeys(
            _span(f"{r.width[0]}x{r.height[0]}", f"{r.width[1]}x{r.height[1]}")
            for r in model.ranges
        )
    )
    raise ServiceError(
        f"{width}x{height}: this server makes {allowed} (width x height)", param="size"
    )


def _span(low: object, high: object) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _fps(request: VideoRequest, model: ModelDescription) -> int:
    if request.fps is None:
        return model.fps
    try:
        return check_fps(request.fps)
    except InvalidInputError as error:
        raise ServiceError(str(error), param="fps") from error


def _steps(request: VideoRequest, model: ModelDescription, limits: Limits) -> int:
    steps = model.steps if request.steps is None else request.steps
    if steps > limits.steps:
        raise ServiceError(f"steps is {steps}: give up to {limits.steps}", param="steps")
    return steps


def _guidance(request: VideoRequest, model: ModelDescription) -> float | None:
    if request.guidance is not None and model.guidance is None:
        raise ServiceError(
            f"{model.model} takes no guidance: leave it out", code="unsupported", param="guidance"
        )
    return model.guidance if request.guidance is None else request.guidance


def _negative(request: VideoRequest, model: ModelDescription) -> str | None:
    if request.negative_prompt is not None and not model.takes_negative_prompt:
        raise ServiceError(
            f"{model.model} takes no negative_prompt: leave it out",
            code="unsupported",
            param="negative_prompt",
        )
    return request.negative_prompt


def _check_sparsity(request: VideoRequest, model: ModelDescription) -> None:
    """Sparse attention that this server cannot have is refused before it is waited for."""
    if request.preset is not None and request.preset not in PRESETS:
        raise ServiceError(
            f"preset {request.preset[:40]!r} is not one of {', '.join(PRESETS)}", param="preset"
        )
    preset = preset_of(request.preset)
    if not model.methods:
        if preset is not None or request.method is not None or request.sparsity:
            raise ServiceError(
                f"attention is dense on this server ({model.backend}): leave out preset, method "
                "and sparsity",
                code="unsupported",
                param="sparsity",
            )
        return
    method = request.method or (preset.method if preset else None)
    if method is not None and method not in model.methods:
        of = f"preset {request.preset} is of method" if request.method is None else "method"
        raise ServiceError(
            f"{of} {method[:40]!r}, and this server has {', '.join(model.methods)}",
            param="preset" if request.method is None else "method",
        )


def _check_cache(request: VideoRequest, model: ModelDescription, steps: int) -> None:
    """A cache that this server cannot have is refused before it is waited for."""
    cache = model.cache if request.cache is None else request.cache
    if request.cache is not None and request.cache not in (OFF, *model.caches):
        known = ", ".join((OFF, *model.caches))
        raise ServiceError(
            f"cache {request.cache[:40]!r} is not one of those that this server has: {known}",
            param="cache",
        )
    if request.cache_threshold is not None and cache in (None, OFF):
        raise ServiceError(
            f"cache_threshold is {request.cache_threshold:g} without a cache: give cache, or leave "
            "it out",
            param="cache_threshold",
        )
    if cache == "mag" and steps != model.cache_steps:
        raise ServiceError(
            f"cache mag was calibrated for {model.cache_steps} steps, and this request has "
            f"{steps}: ask for {model.cache_steps}, or for another cache",
            param="cache",
        )
