"""Optimisation profiles: from clip sizes and the ONNX file's inputs to shapes per input."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.profile import EngineProfile, ShapeRange, VideoRange
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.graph_file import GraphTensor
from rainfusion_trt.models import get_model
from rainfusion_trt.models.base import VideoSize

Shapes = dict[str, ShapeRange]
_BOUNDS = ("min", "opt", "max")


def resolve_profiles(profile: EngineProfile, file: OnnxFile) -> dict[str, Shapes]:
    """Shapes of every input for every optimisation profile, checked against the ONNX file.

    Returns
    -------
    dict
        Profile name -> input name -> shapes, in graph order. Empty if every input of the file has
        a fixed shape and the recipe names none.

    Raises
    ------
    InvalidInputError
        An input is missing or unknown, a rank or a fixed extent differs, or extents that have to
        be equal are not.
    """
    resolved = {
        name: _from_size(profile, name, video, file) for name, video in profile.sizes.items()
    }
    for name, shapes in profile.shapes.items():
        resolved[name] = dict(shapes)
    if not resolved:
        dynamic = [tensor.name for tensor in file.inputs if tensor.dynamic]
        if dynamic:
            raise InvalidInputError(
                f"{file.path} has dynamic inputs ({', '.join(dynamic)}): name clip sizes under "
                "`sizes` or input shapes under `shapes` in the engine profile"
            )
        return {}
    return {name: _checked(name, shapes, file) for name, shapes in resolved.items()}


def _checked(profile: str, shapes: Mapping[str, ShapeRange], file: OnnxFile) -> Shapes:
    known = [tensor.name for tensor in file.inputs]
    unknown = [name for name in shapes if name not in known]
    if unknown:
        raise InvalidInputError(
            f"profile {profile!r} gives a shape for {unknown[0]!r}; inputs of {file.path} are "
            f"{', '.join(known)}"
        )
    complete: Shapes = {}
    for tensor in file.inputs:
        if tensor.name in shapes:
            complete[tensor.name] = shapes[tensor.name]
        elif not tensor.dynamic:
            complete[tensor.name] = ShapeRange(min=tensor.shape, opt=tensor.shape, max=tensor.shape)
        else:
            raise InvalidInputError(
                f"profile {profile!r} has no shape for the dynamic input {tensor.name!r} of "
                f"{file.path}: add min, opt and max for it"
            )
    for bound in _BOUNDS:
        extents: dict[str, tuple[int, str]] = {}
        for tensor in file.inputs:
            _check_shape(profile, bound, tensor, getattr(complete[tensor.name], bound), extents)
    return complete


def _check_shape(
    profile: str,
    bound: str,
    tensor: GraphTensor,
    shape: tuple[int, ...],
    extents: dict[str, tuple[int, str]],
) -> None:
    """Compare one shape with the file; `extents` remembers named extents of earlier inputs."""
    place = f"profile {profile!r}, {bound} of input {tensor.name!r}"
    shown = "x".join(map(str, shape))
    if len(shape) != len(tensor.shape):
        raise InvalidInputError(
            f"{place} is {shown}, rank {len(shape)}; the model has rank {len(tensor.shape)} "
            f"({_symbolic(tensor)})"
        )
    for axis, (extent, declared) in enumerate(zip(shape, tensor.shape, strict=True)):
        if isinstance(declared, int) and extent != declared:
            raise InvalidInputError(
                f"{place} is {shown}, but axis {axis} is fixed at {declared} in the model "
                f"({_symbolic(tensor)}): use that, or export with dynamic shapes"
            )
        if not isinstance(declared, str):
            continue
        earlier, where = extents.setdefault(declared, (extent, tensor.name))
        if earlier != extent:
            raise InvalidInputError(
                f"{place} is {shown}: axis {axis} ({declared}) is {extent} here and {earlier} in "
                f"{where!r}; they must be equal"
            )


def _from_size(profile: EngineProfile, name: str, video: VideoRange, file: OnnxFile) -> Shapes:
    assert profile.model is not None  # EngineProfile checks it
    shapes = {}
    for bound in _BOUNDS:
        extents = [getattr(getattr(video, key), bound) for key in ("frames", "height", "width")]
        batch = getattr(video.batch, bound)
        try:
            shapes[bound] = input_shapes(
                profile.model, file.account.config, VideoSize(*extents), batch
            )
        except InvalidInputError as error:
            raise InvalidInputError(f"profile {name!r}, {bound} size: {error}") from error
    return {
        tensor: ShapeRange(**{bound: shapes[bound][tensor] for bound in _BOUNDS})
        for tensor in shapes["opt"]
    }


def input_shapes(
    model_name: str, config: Mapping[str, Any], size: VideoSize, batch: int
) -> dict[str, tuple[int, ...]]:
    """Shapes of the graph inputs for one clip size, without `sparsity`; as `example_inputs`."""
    inputs = example_inputs(model_name, config, size, batch)
    return {name: tuple(tensor.shape) for name, tensor in inputs.items()}


def example_inputs(
    model_name: str, config: Mapping[str, Any], size: VideoSize, batch: int, seed: int = 0
) -> dict[str, Tensor]:
    """Seeded graph inputs on the CPU, without `sparsity` and without making the model's weights.

    Parameters
    ----------
    model_name, config
        As in an engine's metadata; an empty configuration is the model's full one.

    Raises
    ------
    InvalidInputError
        The model does not know such a size.
    BackendUnavailableError
        diffusers, which defines the model, is not installed.
    """
    model = get_model(model_name)
    try:
        transformer_class = getattr(importlib.import_module("diffusers"), model.transformer_class)
    except ImportError as error:
        raise BackendUnavailableError(
            f"input shapes of {model_name} follow from its diffusers model ({error}): "
            "pip install 'rainfusion-trt[export]', or write `shapes` instead of `sizes`"
        ) from error
    with torch.device("meta"):  # no memory for weights
        transformer = transformer_class(**(config or model.config()))
    return model.example_inputs(transformer, size, batch=batch, seed=seed)


def _symbolic(tensor: GraphTensor) -> str:
    return "x".join(str(extent if extent is not None else "?") for extent in tensor.shape)
