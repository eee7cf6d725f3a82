"""``export_module``: a module of no registry, with its grid and text place given by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.exporter import ExportReport, Stage, check_request, export_source
from rainfusion_trt.export.place import Call, GivenPlace, Grid
from rainfusion_trt.export.source import Axes, GraphSource, check_axes
from rainfusion_trt.export.writer import Progress
from rainfusion_trt.operator.settings import AttentionSettings, TextPlace

_RESERVED = {"sparsity": "an input", "sample": "the output"}


def export_module(
    module: nn.Module,
    inputs: Call,
    *,
    grid: Grid,
    output: str | Path,
    text: TextPlace = AttentionSettings.text,
    text_tokens: int | Callable[[Call], int] = 0,
    kv_len: str | Callable[[Call], Tensor] | None = None,
    attentions: int | None = None,
    name: str | None = None,
    dynamic: Axes | None = None,
    settings: AttentionSettings | None = None,
    run_compare: bool = False,
    stage: Stage = lambda _name: None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write any module that calls ``F.scaled_dot_product_attention`` as ONNX with RainFusion nodes.

    Every call of [B, N, S, D] tensors whose query and key length is T*H*W + L becomes a
    RainFusionAttention node. Other calls (cross-attention) stay as they are.

    Parameters
    ----------
    module
        In evaluation mode, on the CPU or a GPU; its forward gives one tensor, alone or as the only
        one of a tuple or of diffusers' output class. `torch.nn.MultiheadAttention` inside hides its
        call, so its attention stays as it is.
    inputs
        Keyword arguments of its forward. Tensors become inputs of the graph, in this order;
        numbers, strings, booleans and None are fixed in it.
    grid
        Token grid (T, H, W) after patching, or a function of the keyword arguments that gives it,
        as numbers or as any tensor of that shape; for grids that vary, a view of an input:
        ``lambda call: call["latents"][0, 0, :, ::2, ::2]``. Tokens lie in the order t, h, w.
    text, text_tokens
        Where the L text tokens of the sequence stand, "none", "first" or "last", and L itself or a
        function of the keyword arguments.
    kv_len
        Instead of a mask that hides padding at the end: int32 [B], valid tokens of the sequence
        (video and text) per batch element, as the name of an input or a function of the keyword
        arguments. The masks of the calls are then left out.
    attentions
        How many self-attentions there are, if that shall be checked.
    name
        For the metadata; the class's name by default.
    dynamic
        Axes that may vary, as {input: {axis: name}}.
    output, settings, run_compare, stage, progress
        As :func:`export_model`.

    Raises
    ------
    InvalidInputError, UnsupportedError
        Arguments that do not fit, a mask without `kv_len`, or attention RainFusion does not have.
    ExportError
        No attention has T*H*W + L tokens (the message names those that were seen), the module could
        not be traced, or the file fails its checks.

    Examples
    --------
    >>> export_module(dit, {"x": latents, "text": embeddings}, grid=(13, 30, 45), output="dit.onnx")
    """
    dtype = _check_module(module)
    check_request(module, dtype, output, run_compare=run_compare)
    place = GivenPlace(grid, text, text_tokens, kv_len, next(module.parameters()))
    source = _source(module, inputs, place, dtype, name, dynamic or {}, attentions)
    return export_source(
        source,
        output=Path(output),
        settings=settings or AttentionSettings(),
        run_compare=run_compare,
        stage=stage,
        progress=progress,
    )


def _source(
    module: nn.Module,
    inputs: Call,
    place: GivenPlace,
    dtype: torch.dtype,
    name: str | None,
    axes: Axes,
    attentions: int | None,
) -> GraphSource:
    """The module as the exporter takes it; what is wrong with the arguments shows here."""
    tensors = _check_inputs(module, inputs)
    place.layout(inputs)
    _check_dynamic(tensors, axes)
    if attentions is not None and attentions < 1:
        raise InvalidInputError(f"attentions={attentions} must be 1 or more")
    constants = {key: value for key, value in inputs.items() if key not in tensors}

    def call(arguments: dict[str, Any]) -> Tensor:
        return _only_tensor(module, module(**arguments))

    return GraphSource(
        name=name or type(module).__name__,
        module=module,
        dtype=dtype,
        inputs=tensors,
        axes=axes,
        arguments=lambda graph_inputs: {**graph_inputs, **constants},
        call=call,
        eager=call,
        layout=place.layout,
        attentions=attentions,
    )


def _check_module(module: nn.Module) -> torch.dtype:
    """The dtype its weights, and so its attention, have."""
    dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
    if not dtypes:
        raise InvalidInputError(f"{type(module).__name__} has no floating-point parameters")
    if module.training:
        raise InvalidInputError(
            f"{type(module).__name__} is in training mode, where dropout is on; call .eval() first"
        )
    return max(set(dtypes), key=dtypes.count)


def _check_inputs(module: nn.Module, inputs: Call) -> dict[str, Tensor]:
    """The tensors among the arguments."""
    try:
        inspect.signature(module.forward).bind(**inputs)
    except TypeError as error:
        raise InvalidInputError(
            f"inputs {list(inputs)} are not what {type(module).__name__}.forward takes: {error}"
        ) from error
    for key, value in inputs.items():
        if key in _RESERVED:
            raise InvalidInputError(
                f"input {key!r} has the name of {_RESERVED[key]} of every exported graph; wrap the "
                "module so that it is called otherwise"
            )
        if not isinstance(value, (Tensor, bool, int, float, str, type(None))):
            raise InvalidInputError(
                f"input {key!r} is a {type(value).__name__}; wrap the module so that its forward "
                "takes tensors, numbers and strings"
            )
    tensors = {key: value for key, value in inputs.items() if isinstance(value, Tensor)}
    if not tensors:
        raise InvalidInputError(f"inputs {list(inputs)} hold no tensor")
    device = next(module.parameters()).device
    for key, value in tensors.items():
        if value.device != device:
            raise InvalidInputError(f"input {key!r} is on {value.device}, the module on {device}")
    return tensors


def _check_dynamic(tensors: Mapping[str, Tensor], axes: Axes) -> None:
    for key, names in axes.items():
        if key not in tensors:
            raise InvalidInputError(
                f"dynamic names {key!r}, which is none of the tensors {', '.join(tensors)}"
            )
        for axis in names:
            if not 0 <= axis < tensors[key].dim():
                raise InvalidInputError(
                    f"dynamic names axis {axis} of {key!r}, which has {tensors[key].dim()} axes"
                )
    check_axes(tensors, axes, "the example")


def _only_tensor(module: nn.Module, output: Any) -> Tensor:
    """The tensor a forward gives, out of a tuple or a diffusers output of one."""
    if isinstance(output, Tensor):
        return output
    values = tuple(output.values()) if isinstance(output, Mapping) else output
    if isinstance(values, (tuple, list)) and len(values) == 1 and isinstance(values[0], Tensor):
        return values[0]
    raise InvalidInputError(
        f"{type(module).__name__}.forward gives {type(output).__name__}, not one tensor; wrap it"
    )
