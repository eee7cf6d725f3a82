"""Float8 weights with scales beside them, as ComfyUI, musubi and modelopt write them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.checkpoint_checks import first_line, named

# What stands beside a float8 weight: its scale, as ComfyUI, musubi and modelopt call it ...
SCALES = (".scale_weight", ".weight_scale")
# ... and what a graph that multiplies in 16 bits has no use for: scales of activations, marks.
UNUSED_WITH_SCALES = re.compile(r"(.+\.)?(scale_input|input_scale|scaled_fp8|comfy_quant)")
COMFY_HEADER = "_quantization_metadata"

_SCALE_TYPES = frozenset(("F64", "F32", "F16", "BF16"))
# Formats of ComfyUI that are a float8 weight times a scale, and what else its marks may say.
_COMFY_FORMATS = frozenset(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fn_rowwise"))
_COMFY_SETTINGS = frozenset(("format", "full_precision_matrix_mult"))


def check_mark(name: str, mark: bytes, origin: str) -> None:
    """Refuse what a mark of ComfyUI says, if it is no float8 times a scale.

    It says what a weight's bytes are; its shape and type need not show it.

    Parameters
    ----------
    name
        Of the tensor or file with the mark.
    mark
        JSON: that of one layer, or of all under ``layers``.
    origin
        The checkpoint.

    Raises
    ------
    UnsupportedError
        The message names the format.
    """
    try:
        said = json.loads(mark)
        layers = said.get("layers", {name: said}).values()
        formats = {str(layer["format"]) for layer in layers}
        settings = {key for layer in layers for key in layer}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedError(
            f"checkpoint {origin!r} is quantised, and its mark {name} cannot be read "
            f"({first_line(error)}); export the checkpoint with 16- or 32-bit weights that it was "
            "made from"
        ) from error
    strange = sorted(formats - _COMFY_FORMATS) or sorted(settings - _COMFY_SETTINGS)
    if strange:
        raise UnsupportedError(
            f"checkpoint {origin!r} is quantised with {named(strange)} ({name} says so), which is "
            "not read; export the checkpoint with 16- or 32-bit weights that it was made from"
        )


def check_scale_type(name: str, dtype: str, origin: str) -> None:
    """Refuse a scale of 8 bits: exponents, or codes in an order of their own."""
    if dtype not in _SCALE_TYPES:
        raise UnsupportedError(
            f"checkpoint {origin!r} is quantised: the scale {name} is stored as {dtype}, as MXFP8 "
            "and NVFP4 have it, and only scales of 16 or more bits are read; export the "
            "checkpoint with 16- or 32-bit weights that it was made from"
        )


def shaped(name: str, scale: Tensor, weight: tuple[int, ...], origin: str) -> Tensor:
    """A scale as it multiplies a weight: one for all, for every row, or for parts of a row.

    Raises
    ------
    InvalidInputError
        It is 0 or not finite.
    UnsupportedError
        It is of a shape that says nothing about where it belongs.
    """
    if not bool((scale.isfinite() & (scale != 0)).all()):
        raise InvalidInputError(
            f"checkpoint {origin!r}: the scale {name} is 0 or not finite; download it again"
        )
    if scale.numel() == 1:
        return scale.reshape(())
    rows, columns = weight[0], weight[1] if len(weight) == 2 else 0
    if scale.numel() == rows == scale.shape[0]:
        return scale.reshape(rows, *[1] * (len(weight) - 1))
    parts = scale.numel() // rows
    if parts and columns % parts == 0 and tuple(scale.shape) in ((rows, parts), (rows, parts, 1)):
        return scale.reshape(rows, parts).repeat_interleave(columns // parts, dim=1)
    raise UnsupportedError(
        f"checkpoint {origin!r}: the scale {name} of shape {tuple(scale.shape)} "
        f"for a weight of shape {weight} is of no known kind (one for all, for every row or "
        "for parts of a row)"
    )


def apply_scales(module: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Multiply weights that hold their float8 values."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, scale in scales.items():
            weight = parameters[name]
            weight.copy_(weight.float() * scale.to(weight.device))
