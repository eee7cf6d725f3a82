"""Engine recipes, read from YAML files such as those under ``engines/``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticKnownError

from rainfusion_trt.engine.recipes import find_recipe
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields

_TARGET = re.compile(r"sm\d{2,3}")
_GPUS = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _range_from(least: int) -> BeforeValidator:
    """Lets an integer stand for all three of a range; one that is too small is one error."""

    def as_range(value: Any) -> Any:
        if isinstance(value, (dict, Range)):
            return value
        if not isinstance(value, int):
            raise ValueError("must be an integer, or min, opt and max")
        if value < least:
            raise PydanticKnownError("greater_than_equal", {"ge": least})
        return {"min": value, "opt": value, "max": value}

    return BeforeValidator(as_range)


def _as_shapes(value: Any) -> Any:
    if isinstance(value, (dict, ShapeRange)):
        return value
    if not isinstance(value, list):
        raise ValueError("must be a list of extents, or min, opt and max")
    return {"min": value, "opt": value, "max": value}


class Range(_Strict):
    """Smallest, most frequent and largest value; a plain integer stands for all three."""

    min: int = Field(ge=1)
    opt: int = Field(ge=1)
    max: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.min <= self.opt <= self.max:
            raise ValueError(f"needs min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class CountRange(Range):
    """A `Range` of what there may be none of."""

    min: int = Field(ge=0)
    opt: int = Field(ge=0)
    max: int = Field(ge=0)


class ShapeRange(_Strict):
    """Smallest, most frequent and largest shape of one input; a plain list stands for all three."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]

    @model_validator(mode="after")
    def _ordered(self) -> ShapeRange:
        if not len(self.min) == len(self.opt) == len(self.max):
            raise ValueError(
                f"min, opt and max differ in rank: {_show(self.min)}, {_show(self.opt)}, "
                f"{_show(self.max)}"
            )
        if any(low < 1 for low in self.min):
            raise ValueError(f"min {_show(self.min)} has an extent below 1")
        for low, opt, high in zip(self.min, self.opt, self.max, strict=True):
            if not low <= opt <= high:
                raise ValueError(
                    f"needs min <= opt <= max on every axis, got {_show(self.min)}, "
                    f"{_show(self.opt)}, {_show(self.max)}"
                )
        return self

    @property
    def fixed(self) -> bool:
        return self.min == self.max


Name = Annotated[str, Field(min_length=1)]
Extent = Annotated[Range, _range_from(1)]
Count = Annotated[CountRange, _range_from(0)]
Shape = Annotated[ShapeRange, BeforeValidator(_as_shapes)]


class VideoRange(_Strict):
    """Clips that one optimisation profile serves, in pixel frames and pixels.

    Attributes
    ----------
    condition_frames
        Room for conditions whose tokens stand beside the clip's, in latent frames of its size.
    """

    frames: Extent
    height: Extent
    width: Extent
    batch: Extent
    condition_frames: Count = CountRange(min=0, opt=0, max=0)


_EXTENTS = ("frames", "height", "width", "batch")


class BuilderSettings(_Strict):
    """Settings for TensorRT's builder.

    Attributes
    ----------
    optimization_level
        0 to 5, how long TensorRT searches for fast kernels; None = its own default.
    workspace_gib
        Most device memory a layer may use for scratch, in GiB; None = all.
    flags
        Names of `tensorrt.BuilderFlag`, for example ``WEIGHT_STREAMING``.
    """

    optimization_level: int | None = Field(default=None, ge=0, le=5)
    workspace_gib: float | None = Field(default=None, gt=0)
    flags: tuple[str, ...] = ()


class EngineRecipe(_Strict):
    """One engine recipe.

    Attributes
    ----------
    model
        Registry name; the ONNX file must hold this model. None = any model, `shapes` only.
    precision
        Element type of the ONNX file. TensorRT networks are strongly typed: the file decides,
        the recipe says what it expects.
    target
        ``"native"`` = the GPU of this machine; else compute capabilities such as
        ``["sm80", "sm120"]``, which TensorRT for RTX can build for without a GPU.
    sizes
        Named clip sizes, each of which becomes an optimisation profile; the input shapes follow
        from the model.
    gpus
        How many GPUs share a clip, for a model that was exported with ``--parallel``; None = from
        2 on, up to 8.
    shapes
        The general form: named optimisation profiles with the shape of each dynamic graph input.
    builder
        Builder flags and limits.
    """

    model: str | None = None
    precision: Literal["float16", "bfloat16"]
    target: Literal["native"] | tuple[str, ...] = "native"
    sizes: dict[Name, VideoRange] = {}
    gpus: Extent | None = None
    shapes: dict[Name, dict[str, Shape]] = {}
    builder: BuilderSettings = BuilderSettings()

    @model_validator(mode="before")
    @classmethod
    def _target_list(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("target"), str):
            target = value["target"]
            return {**value, "target": target if target == "native" else [target]}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> EngineRecipe:
        check_targets(self.target)
        if self.sizes and self.model is None:
            raise ValueError("`sizes` needs `model`: input shapes follow from the model")
        both = set(self.sizes) & set(self.shapes)
        if both:
            raise ValueError(f"{sorted(both)} stand in `sizes` and in `shapes`: choose one")
        return self

    @property
    def varies(self) -> bool:
        """Whether it needs a file of varying shapes: for several sizes, or a range of one."""
        sizes = [getattr(size, name) for size in self.sizes.values() for name in _EXTENTS]
        ranges: list[Range | ShapeRange] = [*sizes]
        ranges += [shape for shapes in self.shapes.values() for shape in shapes.values()]
        several = len(self.sizes) + len(self.shapes) > 1
        conditions = any(size.condition_frames.max > 0 for size in self.sizes.values())
        return several or conditions or any(each.min != each.max for each in ranges)


def check_targets(target: str | tuple[str, ...]) -> None:
    """Raise ValueError unless `target` is "native" or names compute capabilities."""
    if target == "native":
        return
    if not target:
        raise ValueError("target is empty: use native, or compute capabilities such as [sm80]")
    wrong = [name for name in target if not _TARGET.fullmatch(name)]
    if wrong:
        raise ValueError(f"target {wrong[0]!r} is neither native nor of the form sm80, sm120")
    if len(set(target)) != len(target):
        raise ValueError(f"target names a compute capability twice: {list(target)}")


def load_recipe(path: str | Path) -> EngineRecipe:
    """Read an engine recipe: a YAML file, or one that comes with the project by its name.

    Raises
    ------
    InvalidInputError
        The file is missing, is no YAML, or a key or value does not fit; the message names the
        file, the key and the value.
    """
    path = find_recipe(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(f"engine recipe {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidInputError(f"engine recipe {path} is no text: {error}") from error
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also of dates, and of depth
        raise InvalidInputError(f"engine recipe {path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(
            f"engine recipe {path} must hold keys such as `precision` and `sizes`, "
            f"found {type(content).__name__}"
        )
    try:
        return EngineRecipe.model_validate(content)
    except ValidationError as error:
        reason = explain_fields(error, known=EngineRecipe.model_fields)
        raise InvalidInputError(f"engine recipe {path}: {reason}") from error


def with_gpus(recipe: EngineRecipe, gpus: str | int | None) -> EngineRecipe:
    """A recipe for another number of GPUs, such as 4 or ``"2-8"``; None leaves its own.

    Raises
    ------
    InvalidInputError
        `gpus` is neither.
    """
    if gpus is None:
        return recipe
    match = _GPUS.fullmatch(str(gpus))
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= first <= last:
        raise InvalidInputError(f"gpus={gpus} is no number of GPUs: give one from 1 on, or 2-8")
    return recipe.model_copy(update={"gpus": Range(min=first, opt=first, max=last)})


def _show(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "()"
