"""Inputs and outputs of an engine, and the optimisation profile that serves given shapes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from rainfusion_trt.engine.metadata import EngineMetadata, TensorRecord
from rainfusion_trt.engine.recipe import ShapeRange
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import SHAPE_INPUTS
from rainfusion_trt.runtime.base import TensorInfo, torch_dtype

Shape = tuple[int, ...]


def tensor_infos(records: Iterable[TensorRecord]) -> dict[str, TensorInfo]:
    """What the tensors of an engine accept over all of its optimisation profiles."""
    infos = {}
    for record in records:
        lows = [shape.min for shape in record.profiles.values()]
        highs = [shape.max for shape in record.profiles.values()]
        fixed = tuple(None if extent < 0 else extent for extent in record.shape)
        infos[record.name] = TensorInfo(
            name=record.name,
            dtype=torch_dtype(record.dtype),
            min_shape=tuple(map(min, zip(*lows, strict=True))) if lows else fixed,
            max_shape=tuple(map(max, zip(*highs, strict=True))) if highs else fixed,
        )
    return infos


def profile_infos(metadata: EngineMetadata) -> tuple[dict[str, TensorInfo], ...]:
    """What the inputs of an engine accept in each of its optimisation profiles."""
    infos = tensor_infos(metadata.inputs)
    found = []
    for name in metadata.profiles:
        bounds = {record.name: _bounds(record, name) for record in metadata.inputs}
        found.append(
            {
                key: replace(infos[key], min_shape=shape.min, max_shape=shape.max)
                for key, shape in bounds.items()
            }
        )
    return tuple(found) or (infos,)


def select_profile(metadata: EngineMetadata, shapes: Mapping[str, Shape]) -> int:
    """Index of the optimisation profile that serves these input shapes.

    One that is tuned for exactly these shapes is taken before one that merely allows them, in each
    precision and for any number of GPUs: the inputs that say these do not count.

    Raises
    ------
    InvalidInputError
        No profile does; the message says what the profiles take.
    """
    if not metadata.profiles:
        return 0
    serving = [
        (not _tuned(metadata.inputs, name, shapes), index)
        for index, name in enumerate(metadata.profiles)
        if _allowed(metadata.inputs, name, shapes)
    ]
    if serving:
        return min(serving)[1]
    given = ", ".join(f"{name} {_text(shape)}" for name, shape in shapes.items())
    allowed = "; ".join(_describe(metadata.inputs, name) for name in metadata.profiles)
    raise InvalidInputError(
        f"no optimisation profile of this engine serves {given}. It has {allowed}. Use such a "
        "size, or add one to the engine profile and build again"
    )


def _bounds(record: TensorRecord, profile: str) -> ShapeRange:
    """Shapes of an input in a profile, which only inputs of a fixed shape may leave out."""
    fixed = record.shape
    return record.profiles.get(profile) or ShapeRange(min=fixed, opt=fixed, max=fixed)


def _allowed(inputs: Sequence[TensorRecord], profile: str, shapes: Mapping[str, Shape]) -> bool:
    for record in inputs:
        bounds, shape = _bounds(record, profile), shapes[record.name]
        if len(shape) != len(bounds.min) or any(
            not low <= extent <= high
            for low, extent, high in zip(bounds.min, shape, bounds.max, strict=True)
        ):
            return False
    return True


def _tuned(inputs: Sequence[TensorRecord], profile: str, shapes: Mapping[str, Shape]) -> bool:
    clip = (record for record in inputs if record.name not in SHAPE_INPUTS)
    return all(_bounds(record, profile).opt == shapes[record.name] for record in clip)


def _describe(inputs: Sequence[TensorRecord], profile: str) -> str:
    parts = []
    for record in inputs:
        bounds = _bounds(record, profile)
        text = _text(bounds.min)
        parts.append(f"{record.name} {text if bounds.fixed else f'{text} to {_text(bounds.max)}'}")
    return f"{profile!r}: {', '.join(parts)}"


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "()"
