"""``export_module`` exports any module whose grid and text place the caller gives."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.exporter import ExportReport, Stage, check_request, export_source
from rainfusion_trt.export.source import Axes, GraphSource, check_axes
from rainfusion_trt.export.writer import Progress
from rainfusion_trt.graph_file import BITS_INPUT
from rainfusion_trt.models.given import Call, GivenPlace, Grid, KvLen, TextTokens
from rainfusion_trt.operator.settings import AttentionSettings, TextPlace

_RESERVED = {
    "sparsity": "an input of every exported graph",
    "sample": "the output of every exported graph",
    BITS_INPUT: "an input of every graph of 8 bits",  # by which readers tell these graphs
}


@typed
def export_module(
    module: nn.Module,
    inputs: Call,
    *,
    grid: Grid,
    output: str | Path,
    text: TextPlace = AttentionSettings.text,
    text_tokens: TextTokens = 0,
    kv_len: KvLen = None,
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
        A module in evaluation mode, on the CPU or a GPU. Its forward returns one tensor, alone or
        as the only item of a tuple or of a diffusers output. `torch.nn.MultiheadAttention` hides
        its call, so attention in it stays as it is.
    inputs
        Keyword arguments for its forward. Tensors become inputs of the graph, in this order;
        numbers, strings, booleans and None become fixed.
    grid
        Token grid (T, H, W) after patching, or the name of an argument or a function of the keyword
        arguments that gives it, as numbers or as any tensor of that shape. For a grid that varies,
        return a view of an input: ``lambda call: call["latents"][0, 0, :, ::2, ::2]``. Tokens are
        in t, h, w order.
    text, text_tokens
        Place of the L text tokens in the sequence, "none", "first" or "last", and L, as a number
        or a function of the keyword arguments.
    kv_len
        Replaces a mask that hides padding at the end: int32 [B], the number of valid tokens (video
        and text) of each batch element, as the name of an input or a function of the keyword
        arguments. The calls' own masks are then left out.
    attentions
        Expected number of self-attentions; None accepts any.
    name
        Name in the metadata; the default is the class's name.
    dynamic
        Axes that may vary, as {input: {axis: name}}.
    output, settings, run_compare, stage, progress
        As :func:`export_model`.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The arguments do not fit, a call has a mask and `kv_len` is None, or RainFusion does not
        support the attention.
    ExportError
        No attention has T*H*W + L tokens (the message lists those seen), the module cannot be
        traced, or the file fails its checks.

    Examples
    --------
    >>> export_module(dit, {"x": latents, "text": embeddings}, grid=(13, 30, 45), output="dit.onnx")
    """
    dtype = _check_module(module)
    check_request(module, dtype, output, run_compare=run_compare)
    place = GivenPlace(grid, text, text_tokens, kv_len)
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
    """Check the arguments and make the module a source for the exporter."""
    tensors = _check_inputs(module, inputs)
    like = next(module.parameters())
    place.layout(inputs, like)
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
        layout=partial(place.layout, like=like),
        attentions=attentions,
    )


def _check_module(module: nn.Module) -> torch.dtype:
    """Dtype of most of the weights, and so of attention."""
    dtypes = [p.dtype for p in module.parameters() if p.is_floating_point()]
    if not dtypes:
        raise InvalidInputError(f"{type(module).__name__} has no floating-point parameters")
    if module.training:
        raise InvalidInputError(
            f"{type(module).__name__} is in training mode, where dropout is on; call .eval() first"
        )
    return max(set(dtypes), key=dtypes.count)


def _check_inputs(module: nn.Module, inputs: Call) -> dict[str, Tensor]:
    """Check the arguments and return the tensors among them."""
    try:
        inspect.signature(module.forward).bind(**inputs)
    except TypeError as error:
        raise InvalidInputError(
            f"inputs {list(inputs)} are not what {type(module).__name__}.forward takes: {error}"
        ) from error
    for key, value in inputs.items():
        if key in _RESERVED:
            raise InvalidInputError(
                f"input {key!r} has the name of {_RESERVED[key]}; wrap the module so that it is "
                "called otherwise"
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
    """Take the one tensor out of a forward's result, a tuple or a diffusers output."""
    if isinstance(output, Tensor):
        return output
    values = tuple(output.values()) if isinstance(output, Mapping) else output
    if isinstance(values, (tuple, list)) and len(values) == 1 and isinstance(values[0], Tensor):
        return values[0]
    raise InvalidInputError(
        f"{type(module).__name__}.forward gives {type(output).__name__}, not one tensor; wrap it"
    )
