"""Compares a loaded engine with the metadata beside it, which everything else relies on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rainfusion_trt.engine.metadata import EngineMetadata, TensorRecord
from rainfusion_trt.engine.records import dtype_of
from rainfusion_trt.errors import EngineLoadError


def check_engine(engine: Any, metadata: EngineMetadata, plan: Path) -> None:
    """Refuse metadata that does not describe the engine.

    Parameters
    ----------
    engine
        TensorRT's ICudaEngine.
    metadata, plan
        What is said of it, and the file it was loaded from, for the message.

    Raises
    ------
    EngineLoadError
        Names, directions, element types, shapes or optimisation profiles differ.
    """
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    said = {record.name for record in (*metadata.inputs, *metadata.outputs)}
    if found != said:
        raise _differs(plan, "inputs and outputs", sorted(found), sorted(said))
    count = max(1, len(metadata.profiles))  # an engine of fixed shapes has one without a name
    if engine.num_optimization_profiles != count:
        raise _differs(plan, "optimisation profiles", engine.num_optimization_profiles, count)
    for mode, records in (("INPUT", metadata.inputs), ("OUTPUT", metadata.outputs)):
        for record in records:
            _check_tensor(engine, record, mode, plan)
    for record in metadata.inputs:
        if -1 in record.shape:
            _check_profiles(engine, record, metadata.profiles, plan)


def _check_tensor(engine: Any, record: TensorRecord, mode: str, plan: Path) -> None:
    name = record.name
    found = engine.get_tensor_mode(name).name
    if found != mode:
        raise _differs(plan, f"{name} as", found.lower(), mode.lower())
    native = engine.get_tensor_dtype(name).name
    if dtype_of(native) != record.dtype:
        raise _differs(plan, f"{name} as", dtype_of(native) or native.lower(), record.dtype)
    shape = tuple(engine.get_tensor_shape(name))
    alike = len(shape) == len(record.shape) and all(
        mine == said or -1 in (mine, said) for mine, said in zip(shape, record.shape, strict=True)
    )
    if not alike:
        raise _differs(plan, f"{name} of shape", shape, record.shape)


def _check_profiles(engine: Any, record: TensorRecord, names: Sequence[str], plan: Path) -> None:
    for index, name in enumerate(names):
        said = record.profiles[name]  # load_metadata has seen that it is there
        found = tuple(tuple(s) for s in engine.get_tensor_profile_shape(record.name, index))
        if found != (said.min, said.opt, said.max):
            where = f"{record.name} in profile {name!r} as"
            raise _differs(plan, where, found, (said.min, said.opt, said.max))


def _differs(plan: Path, what: str, found: object, said: object) -> EngineLoadError:
    return EngineLoadError(
        f"{plan} has {what} {found}, its metadata says {said}: build the engine again"
    )
