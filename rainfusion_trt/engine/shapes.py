"""Optimisation profiles: from clip sizes and the ONNX file's inputs to shapes per input.

The file names the axes that vary; the model says by arithmetic how long they are for a clip. The
network is not made and diffusers is not needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.recipe import EngineRecipe, Range, ShapeRange, VideoRange
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields
from rainfusion_trt.graph_file import BITS, BITS_INPUT, PART_AXIS, GraphTensor
from rainfusion_trt.models import GraphInput, VideoModel, VideoSize, get_model
from rainfusion_trt.models.inputs import extent_of
from rainfusion_trt.operator.exact_frames import check_within

Shapes = dict[str, ShapeRange]
_BOUNDS = ("min", "opt", "max")
_BITS = ShapeRange(min=(BITS["8bit"],), opt=(BITS["8bit"],), max=(BITS["16bit"],))
USUAL_GPUS = Range(min=2, opt=2, max=8)
"""How many GPUs share a clip where a recipe does not say."""


def resolve_profiles(recipe: EngineRecipe, file: OnnxFile) -> dict[str, Shapes]:
    """Shapes of every input for every optimisation profile, checked against the ONNX file.

    Returns
    -------
    dict
        Profile name -> input name -> shapes, in graph order. Empty if every input of the file has
        a fixed shape and the recipe names none. A file of 8 bits has both precisions in each.

    Raises
    ------
    InvalidInputError
        An input is missing or unknown, a rank or a fixed extent differs, or extents that have to
        be equal are not.
    """
    gpus = gpus_of(recipe, file)
    resolved = {
        name: _from_size(recipe, name, video, file, gpus) for name, video in recipe.sizes.items()
    }
    for name, shapes in recipe.shapes.items():
        resolved[name] = dict(shapes)
    dynamic = [tensor.name for tensor in file.inputs if tensor.dynamic]
    if not resolved and dynamic == [BITS_INPUT]:
        resolved["clip"] = {}
    if not resolved:
        if dynamic:
            raise InvalidInputError(
                f"{file.path} has dynamic inputs ({', '.join(dynamic)}): name clip sizes under "
                "`sizes` or input shapes under `shapes` in the engine recipe"
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
        if tensor.name == BITS_INPUT and file.eight_bit:
            complete[tensor.name] = _both_precisions(profile, shapes.get(tensor.name))
        elif tensor.name in shapes:
            complete[tensor.name] = shapes[tensor.name]
        elif not tensor.dynamic:
            fixed = tuple(extent for extent in tensor.shape if isinstance(extent, int))  # all
            place = f"input {tensor.name!r} of {file.path}"
            complete[tensor.name] = _shape_range(place, dict.fromkeys(_BOUNDS, fixed))
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


def _both_precisions(profile: str, given: ShapeRange | None) -> ShapeRange:
    if given not in (None, _BITS):
        raise InvalidInputError(
            f"profile {profile!r} gives a shape for {BITS_INPUT!r}, which has those of both "
            "precisions of a file of 8 bits: leave it out"
        )
    return _BITS


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
                f"({_symbolic(tensor)}): use that, or export with dynamic shapes (--dynamic)"
            )
        if not isinstance(declared, str):
            continue
        earlier, where = extents.setdefault(declared, (extent, tensor.name))
        if earlier != extent:
            raise InvalidInputError(
                f"{place} is {shown}: axis {axis} ({declared}) is {extent} here and {earlier} in "
                f"{where!r}; they must be equal"
            )


def gpus_of(recipe: EngineRecipe, file: OnnxFile) -> Range | None:
    """How many GPUs may share a clip; None for a file of one GPU.

    Raises
    ------
    InvalidInputError
        The recipe names a number, and the file is of one GPU or has fewer heads.
    """
    heads = file.account.config.get("num_attention_heads")
    most = heads if isinstance(heads, int) else USUAL_GPUS.max
    if recipe.gpus is None:
        if not file.account.parallel:
            return None
        usual = USUAL_GPUS
        return Range(min=usual.min, opt=usual.opt, max=max(usual.min, min(usual.max, most)))
    shown = f"gpus: {recipe.gpus.min}" + (
        f" to {recipe.gpus.max}" if recipe.gpus.max > recipe.gpus.min else ""
    )
    if not file.account.parallel:
        raise InvalidInputError(
            f"{shown} was asked for, and {file.path} is for one GPU: export it with --parallel, or "
            "leave gpus out"
        )
    if isinstance(heads, int) and recipe.gpus.max > heads:
        raise InvalidInputError(
            f"{shown} was asked for, and each needs one of the {heads} heads of {file.path} or "
            f"more: give up to {heads}"
        )
    return recipe.gpus


def _from_size(
    recipe: EngineRecipe, name: str, video: VideoRange, file: OnnxFile, gpus: Range | None
) -> Shapes:
    assert recipe.model is not None  # EngineRecipe checks it
    model = get_model(recipe.model)
    shapes = {}
    for bound in _BOUNDS:
        frames, height, width, batch = (
            getattr(getattr(video, key), bound) for key in ("frames", "height", "width", "batch")
        )
        try:
            size = VideoSize(frames, height, width)
            part, more = _part_at(bound, gpus), getattr(video.condition_frames, bound)
            shapes[bound] = clip_shapes(model, file, size, batch, part, condition_frames=more)
            if bound != "min":  # smaller clips without such a frame are refused in a call
                _check_exact_frames(model, file, size)
        except InvalidInputError as error:
            raise InvalidInputError(f"profile {name!r}, {bound} size: {error}") from error
    return {
        tensor: _shape_range(
            f"profile {name!r}, input {tensor!r} of {file.path}",
            {bound: shapes[bound][tensor] for bound in _BOUNDS},
        )
        for tensor in shapes["opt"]
    }


def _shape_range(place: str, shapes: Mapping[str, tuple[int, ...]]) -> ShapeRange:
    """The shapes of one input where the file or its account gives the extents."""
    try:
        return ShapeRange(**shapes)
    except ValidationError as error:
        reason = explain_fields(error)
        raise InvalidInputError(f"{place}: {reason}: export the model again") from error


def _check_exact_frames(model: VideoModel, file: OnnxFile, size: VideoSize) -> None:
    """Refuse a clip without the frames that a file was exported to keep exact."""
    account = file.account
    if account.settings is not None and account.settings.exact_frames:
        extents = model.extents(account.config or model.config(), size, 1)
        check_within(account.settings.exact_frames, extents["grid_frames"])


def _part_at(bound: str, gpus: Range | None) -> Callable[[int], int]:
    """From the tokens of a clip to those of one GPU: the fewest, the usual or the most."""
    if gpus is None:
        return lambda tokens: tokens
    if bound == "min":
        return lambda tokens: max(1, tokens // gpus.max)
    count = gpus.opt if bound == "opt" else gpus.min
    return lambda tokens: -(-tokens // count)


def clip_shapes(
    model: VideoModel,
    file: OnnxFile,
    size: VideoSize,
    batch: int,
    part: Callable[[int], int] = lambda tokens: tokens,
    *,
    condition_frames: int = 0,
) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's inputs for one clip.

    Parameters
    ----------
    model : VideoModel
        Says how long the axes are that vary.
    file : OnnxFile
        Says which inputs there are and names their axes. An axis of another name, or of none, is
        taken for that of the model's input of the same name.
    size : VideoSize
        In pixels.
    batch : int
        Batch of the call.
    part : callable
        From the tokens of the video to those of one GPU.
    condition_frames : int
        As in `VideoModel.with_conditions`.

    Returns
    -------
    dict
        Input name -> shape, in the file's order, without inputs of fixed shape that the model does
        not have, such as `sparsity`.

    Raises
    ------
    InvalidInputError
        The model makes no such clip, or the file's inputs are not those of the model.
    """
    config = file.account.config or model.config()
    extents = model.with_conditions(model.extents(config, size, batch), condition_frames)
    extents[PART_AXIS] = part(extents["video_tokens"])
    declared = {given.name: given for given in model.inputs}
    found = [tensor.name for tensor in file.inputs]
    missing = [name for name in declared if name not in found]
    if missing:
        raise InvalidInputError(
            f"{file.path} has no input {missing[0]!r}, which {model.name} takes; its inputs are "
            f"{', '.join(found)}: use the recipe of the model that it holds"
        )
    return {
        tensor.name: _shape(model, file, tensor, declared.get(tensor.name), extents, config)
        for tensor in file.inputs
        if (tensor.dynamic and tensor.name != BITS_INPUT) or tensor.name in declared
    }


def _shape(
    model: VideoModel,
    file: OnnxFile,
    tensor: GraphTensor,
    known: GraphInput | None,
    extents: Mapping[str, int],
    config: Mapping[str, Any],
) -> tuple[int, ...]:
    """The shape of one input; `_checked` compares it with the file's fixed extents afterwards."""
    if known is not None and len(known.axes) != len(tensor.shape):
        raise InvalidInputError(
            f"input {tensor.name!r} of {file.path} is {_symbolic(tensor)}, {model.name} takes "
            f"{'x'.join(map(str, known.axes))}: use the recipe of the model that the file holds"
        )
    shape = []
    for axis, by_file in enumerate(tensor.shape):
        by_model = known.axes[axis] if known is not None else None
        extent: Any = by_file if by_model is None else by_model
        if isinstance(by_model, str):
            extent = extent_of(by_model, config) if by_model in config else by_file
        for name in (by_model, by_file):  # the file's name goes before the model's
            if isinstance(name, str) and name in extents:
                extent = extents[name]
        if not isinstance(extent, int):
            raise InvalidInputError(
                f"axis {axis} of input {tensor.name!r} of {file.path} ({_symbolic(tensor)}) has no "
                f"name that {model.name} knows ({', '.join(extents)}): give its shape under "
                "`shapes` instead of `sizes`"
            )
        shape.append(extent)
    return tuple(shape)


def _symbolic(tensor: GraphTensor) -> str:
    return "x".join(str(extent if extent is not None else "?") for extent in tensor.shape)
