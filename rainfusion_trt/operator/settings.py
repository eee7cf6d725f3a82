"""The operator's settings: their names, defaults and checks.

Nothing here imports torch, so that reading an engine's metadata stays quick.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, get_args

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.exact_frames import FrameRanges, flat_of, frames_of_flat, ranges_of

__all__ = [
    "ATTRIBUTES",
    "EIGHT_BIT_CAPABILITY",
    "EIGHT_BIT_FORMATS",
    "EIGHT_BIT_GPUS",
    "LATER_ATTRIBUTES",
    "METHODS",
    "NODE_ATTRIBUTES",
    "OPERATOR_V1_DEFAULTS",
    "PRECISIONS",
    "RECORDED",
    "TEXT_PLACES",
    "AttentionSettings",
    "Method",
    "Precision",
    "TextPlace",
]

TextPlace = Literal["none", "first", "last"]
Method = Literal["rainfusion", "rainfusion_two_way", "rainfusion_plus", "rainfusion2", "piecewise"]
Precision = Literal["16bit", "8bit"]

TEXT_PLACES: tuple[str, ...] = get_args(TextPlace)
METHODS: tuple[str, ...] = get_args(Method)
PRECISIONS: tuple[str, ...] = get_args(Precision)

EIGHT_BIT_FORMATS: Mapping[str, str] = MappingProxyType(
    {"q": "int8", "k": "int8", "p": "float8_e4m3fn", "v": "float8_e4m3fn"}
)
"""Operands of the two products with ``precision="8bit"``; p are the probabilities."""

EIGHT_BIT_CAPABILITY = (8, 9)
"""The first compute capability whose instructions 8 bits need."""

EIGHT_BIT_GPUS = "GPUs of compute capability {}.{} and newer".format(*EIGHT_BIT_CAPABILITY)
"""Where 8 bits have kernels, in words. Which GPU has one the library says."""

NODE_ATTRIBUTES = ("text", "method", "alpha", "sink_frames", "scale")
"""Settings in the order in which the ONNX node has them."""

LATER_ATTRIBUTES = ("precision", "last_sink_frames", "exact_frames")
"""Settings that came later: nodes and records have them only where they are not the default, so
that files stay as they were, and older readers refuse what they do not know."""

ATTRIBUTES = (*NODE_ATTRIBUTES, *LATER_ATTRIBUTES)
"""Settings in the order in which the torch operator has them."""

RECORDED = ("method", "alpha", "sink_frames")
"""Settings of a whole model. Text and scale belong to each of its attentions."""

_TEXTURAL = ("rainfusion", "rainfusion_plus")  # methods that make heads textural
_MOST_SINK_FRAMES = (1 << 31) - 1  # the C interface has 32 bits for them


@dataclass(frozen=True)
class AttentionSettings:
    """Settings that stay fixed over a generation: the attributes of the operator.

    The values here are the defaults of every Python function and of the command line. A call's
    sparsity is no setting, since it may change from step to step.

    Parameters
    ----------
    method : str
        "rainfusion" (spatial, temporal, textural), "rainfusion_two_way" (no textural heads),
        "rainfusion_plus" (band chosen per head), "rainfusion2" (best blocks by block means) or
        "piecewise" (best windows by window means, the others by their means), the default.
    alpha : float
        Recall in [0, 1] from which a head counts as temporal or spatial.
    sink_frames : int
        Leading latent frames that every token attends to and that attend to every token.
    text : str
        Place of the text tokens: "none", "first" or "last". In a model its layout says it.
    scale : float
        Softmax scale; 0 is 1 / sqrt(D). In a model each attention says it.
    precision : str
        "16bit", or "8bit" for products of 8-bit operands (docs/rainfusion.md): GPUs of compute
        capability 8.9 and newer, D of 64 and 128, methods without textural heads.
    last_sink_frames : int
        Latent frames at the end of the clip that are as those of `sink_frames`: 1 keeps exact what
        a given last picture fixes.
    exact_frames : sequence of int or (int, int)
        Latent frames anywhere in the clip, and ranges (begin, end) of them, that are exact
        (docs/rainfusion.md): what pictures in the middle fix. Kept as ranges in their order. Of
        methods without textural heads.

    Raises
    ------
    InvalidInputError
        A value of the wrong type or out of range.
    UnsupportedError
        8 bits or exact frames with a method that makes heads textural.
    """

    method: Method = "piecewise"
    alpha: float = 0.9
    sink_frames: int = 1
    text: TextPlace = "none"
    scale: float = 0.0
    precision: Precision = "16bit"
    last_sink_frames: int = 0
    exact_frames: FrameRanges = ()

    def __post_init__(self) -> None:
        _check_choice("method", self.method, METHODS)
        _check_choice("precision", self.precision, PRECISIONS)
        if self.precision == "8bit" and self.method in _TEXTURAL:
            raise UnsupportedError(
                f"precision='8bit' has no kernel for the textural heads of method "
                f"{self.method!r}; use 'piecewise' or 'rainfusion2', or precision='16bit'"
            )
        # As frozen as the rest, and one value for whatever way it was said in.
        object.__setattr__(self, "exact_frames", ranges_of(self.exact_frames))
        if self.exact_frames and self.method in _TEXTURAL:
            raise UnsupportedError(
                f"exact_frames={self.exact_frames} has no kernel for the textural heads of method "
                f"{self.method!r}; use 'piecewise', 'rainfusion2' or 'rainfusion_two_way'"
            )
        _check_number("alpha", self.alpha)
        if not 0.0 <= self.alpha <= 1.0:
            raise InvalidInputError(f"alpha={self.alpha} must be in [0, 1]; it is a share of mass")
        check_sink_frames(self.sink_frames)
        check_sink_frames(self.last_sink_frames, "last_sink_frames")
        check_text(self.text)
        _check_number("scale", self.scale)
        if not (math.isfinite(self.scale) and self.scale >= 0.0):
            raise InvalidInputError(
                f"scale={self.scale} must be positive; leave it out for 1/sqrt(D)"
            )
        # A node's attribute has one type, and 1 is not 1.0 there.
        object.__setattr__(self, "alpha", float(self.alpha))
        object.__setattr__(self, "sink_frames", int(self.sink_frames))
        object.__setattr__(self, "last_sink_frames", int(self.last_sink_frames))
        object.__setattr__(self, "scale", float(self.scale))

    @classmethod
    def of(cls, *, scale: float | None = None, **settings: Any) -> AttentionSettings:
        """Collect the keyword arguments of a public function, where no scale is None."""
        return cls(scale=0.0 if scale is None else scale, **settings)

    def replace(self, **changes: Any) -> AttentionSettings:
        """These settings with some changed, checked again."""
        return dataclasses.replace(self, **changes)

    def softmax_scale(self, head_size: int) -> float:
        """The factor of the scores: `scale`, or 1 / sqrt(D) where that is 0."""
        return self.scale or 1.0 / math.sqrt(head_size)

    def attributes(self) -> dict[str, Any]:
        """All settings by name, in the operator's order."""
        return {name: getattr(self, name) for name in ATTRIBUTES}

    def node_attributes(self) -> dict[str, Any]:
        """The settings of an ONNX node by name."""
        attributes = {name: getattr(self, name) for name in NODE_ATTRIBUTES}
        attributes |= self.later_attributes()
        if self.exact_frames:
            attributes["exact_frames"] = flat_of(self.exact_frames)
        return attributes

    def later_attributes(self) -> dict[str, Any]:
        """Those of `LATER_ATTRIBUTES` that are not the default, by name."""
        values = {name: getattr(self, name) for name in LATER_ATTRIBUTES}
        return {n: value for n, value in values.items() if value != getattr(AttentionSettings, n)}

    def flat(self) -> tuple[str, str, float, int, float, str, int, list[int]]:
        """The values alone, as the torch operator takes them."""
        return (
            *(self.text, self.method, self.alpha, self.sink_frames, self.scale),
            *(self.precision, self.last_sink_frames, flat_of(self.exact_frames)),
        )

    @staticmethod
    def from_flat(*values: Any) -> AttentionSettings:
        """The settings of a call of the torch operator; the reverse of :meth:`flat`."""
        *others, frames = values
        return _from_flat(*others, tuple(frames))

    def check_model_wide(self) -> None:
        """Raise InvalidInputError for a text place or a scale, which no whole model has."""
        for name in ("text", "scale"):
            value = getattr(self, name)
            if value != getattr(AttentionSettings, name):
                raise InvalidInputError(
                    f"{name}={value!r} cannot be set for a whole model: its layout and its "
                    f"attentions say it; leave {name} out of the settings"
                )

    def record(self) -> dict[str, Any]:
        """The settings of a whole model, as an exported file and an engine's metadata hold them.

        Raises
        ------
        InvalidInputError
            They have a text place or a scale, which would be lost.
        """
        self.check_model_wide()
        record = {name: getattr(self, name) for name in RECORDED} | self.later_attributes()
        if self.exact_frames:
            record["exact_frames"] = [list(each) for each in self.exact_frames]  # as JSON has them
        return record

    @classmethod
    def from_record(cls, values: Mapping[str, Any]) -> AttentionSettings:
        """Read what :meth:`record` gave.

        Parameters
        ----------
        values : mapping
            Such as ``{"method": "rainfusion", "alpha": 0.9, "sink_frames": 1}``. What is missing
            has the value of version 1 of the ONNX operator.

        Raises
        ------
        InvalidInputError
            No mapping, an unknown name, or a value that does not fit.
        """
        if not isinstance(values, Mapping):
            raise InvalidInputError(
                f"attention settings {values!r} must be a mapping of {', '.join(RECORDED)}"
            )
        known = (*RECORDED, *LATER_ATTRIBUTES)
        unknown = [repr(name) for name in values if name not in known]
        if unknown:
            raise InvalidInputError(
                f"attention settings have {', '.join(unknown)}; they are {', '.join(known)}"
            )
        return OPERATOR_V1_DEFAULTS.replace(**values)


def check_text(value: object) -> None:
    """Raise InvalidInputError for a text place there is not."""
    _check_choice("text", value, TEXT_PLACES)


def check_sink_frames(value: object, name: str = "sink_frames") -> None:
    """Raise InvalidInputError for a number of sink frames there cannot be."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidInputError(f"{name}={shown(value)} must be a whole number")
    if value < 0:
        raise InvalidInputError(f"{name}={value} must be 0 or more")
    if int(value) > _MOST_SINK_FRAMES:
        raise InvalidInputError(f"{name}={value} must be below 2^31")


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise InvalidInputError(f"{name}={shown(value)} is not one of {', '.join(choices)}")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidInputError(f"{name}={shown(value)} must be a number")


@functools.lru_cache(typed=True)
def _from_flat(*values: Any) -> AttentionSettings:
    # Cached, so that the settings of a call are checked where they are made and not in each call.
    settings = dict(zip(ATTRIBUTES, values, strict=True))
    settings["exact_frames"] = frames_of_flat(settings["exact_frames"])
    return AttentionSettings(**settings)


OPERATOR_V1_DEFAULTS = AttentionSettings(
    text="none",
    method="rainfusion",
    alpha=0.9,
    sink_frames=1,
    scale=0.0,
    precision="16bit",
    last_sink_frames=0,
    exact_frames=(),
)
"""Values of attributes that a node of version 1 of the ONNX operator lacks.

Frozen: graphs that were written with it rely on it. Python's defaults are those of
:class:`AttentionSettings` and may move; the TensorRT plugin's are in ``tensorrt/attributes.h``.
"""
