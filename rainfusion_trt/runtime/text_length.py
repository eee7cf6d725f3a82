"""How many tokens of text graphs take, and the argument of pipelines that says how many."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.models.inputs import extent_of
from rainfusion_trt.models.model_clips import TextBounds
from rainfusion_trt.runtime.pipes import diffusers_classes, parameters_of

_TEXT, _AXIS = "encoder_hidden_states", "text_tokens"
_ARGUMENT = "max_sequence_length"


def text_bounds(model: VideoModel, transformers: Iterable[Any]) -> TextBounds:
    """The fewest and the most tokens of text that all of these exported transformers take.

    None stands for no bound.
    """
    axes = next((given.axes for given in model.inputs if given.name == _TEXT), ())
    low: int | None = None
    high: int | None = None
    if _AXIS not in axes:
        return low, high
    axis = axes.index(_AXIS)
    for transformer in transformers:
        backend = getattr(transformer, "backend", None)
        known = None if backend is None else backend.inputs.get(_TEXT)
        if known is None or len(known.min_shape) <= axis:
            continue
        least, most = known.min_shape[axis], known.max_shape[axis]
        low = least if low is None else max(low, least or low)
        high = most if high is None else min(high, most or high)
    return low, high


def fit_text(model: VideoModel, pipe: Any, bounds: TextBounds, arguments: dict[str, Any]) -> None:
    """Let a call make as much text as a graph takes, where the pipeline's default is more or less.

    Pipelines of one model differ in it: LTX's with conditions pads prompts to 256 tokens, the
    others to 128, which graphs of one text length are of.

    Raises
    ------
    InvalidInputError
        Another length is asked for.
    """
    known = parameters_of(type(pipe)).get(_ARGUMENT)
    if known is None or bounds == (None, None) or not _is_length(model, pipe):
        return
    low, high = bounds
    asked = arguments.get(_ARGUMENT)
    length = known.default if asked is None else asked
    if not isinstance(length, int):
        return
    fitting = max(length, low or length)
    fitting = min(fitting, high or fitting)
    if fitting == length:
        return
    if asked is not None:
        takes = f"{low}" if low == high else f"{low or 1} to {high}"
        raise InvalidInputError(
            f"{_ARGUMENT}={asked}: this model was exported or built for {takes} tokens of text; "
            "leave it out, or export and build for more"
        )
    arguments[_ARGUMENT] = fitting


def _is_length(model: VideoModel, pipe: Any) -> bool:
    """Whether the argument is the text's length, to which nothing, as an image, is added."""
    usual = model.sequences.get(_AXIS)
    classes = diffusers_classes(model)
    if usual is None or not classes:
        return False
    of_class = parameters_of(classes[0]).get(_ARGUMENT)
    return of_class is not None and of_class.default == extent_of(usual, pipe.transformer.config)
