"""The parts of metadata.json: files, tensors, and types that say what a value may be."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from rainfusion_trt.engine.recipe import Name, ShapeRange, check_targets

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Version = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)+")]
Dtype = Literal["bool", "uint8", "int8", "int32", "int64", "float16", "bfloat16", "float32"]
"""Element types that torch and TensorRT both have, by torch's names."""

_DTYPES: dict[str, Dtype] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "HALF": "float16",
    "BF16": "bfloat16",
    "FLOAT": "float32",
}


def dtype_of(name: str) -> Dtype | None:
    """The element type of TensorRT's name for it; None if torch has no such."""
    return _DTYPES.get(name)


def _targets(value: tuple[str, ...]) -> tuple[str, ...]:
    check_targets(value)
    return value


def _unique(value: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(value)) != len(value):
        raise ValueError("names one twice")
    return value


def _extent(value: int) -> int:
    if value < 1 and value != -1:
        raise ValueError("an extent is -1 where it is dynamic, else from 1 on")
    return value


def _date(value: str) -> str:
    datetime.datetime.fromisoformat(value)
    return value


Targets = Annotated[tuple[str, ...], AfterValidator(_targets)]
Names = Annotated[tuple[Name, ...], AfterValidator(_unique)]
Date = Annotated[str, AfterValidator(_date)]


class Record(BaseModel):
    """What all parts have in common: no value is taken for one of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class FileRecord(Record):
    """Content of one file of the ONNX model, with what tells that it has not changed since."""

    name: Name
    size: Count
    sha256: Sha256
    mtime_ns: int
    ctime_ns: int
    inode: int


class TensorRecord(Record):
    """An engine input or output.

    Attributes
    ----------
    name, dtype
        Name in the graph and torch's name of the element type.
    shape
        Extents, -1 where dynamic.
    profiles
        Shapes per optimisation profile, by its name; of inputs only.
    """

    name: Name
    dtype: Dtype
    shape: tuple[Annotated[int, AfterValidator(_extent)], ...]
    profiles: dict[str, ShapeRange] = {}


class PluginRecord(Record):
    """The plugin library that the engine was built with."""

    file: Name
    sha256: Sha256
    build: str
