"""What a checkpoint says of itself, and whether it is that of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError

Shapes = Mapping[str, tuple[int, ...]]

CONFIG = "its config.json"
_QUANTISERS = (
    (re.compile(r"\.(absmax|SCB|quant_map|nested_absmax|quant_state\..+)$"), "bitsandbytes"),
    (re.compile(r"(_quantizer\._amax|\.weight_scale_2)$"), "modelopt or NVFP4"),
    (re.compile(r"\.(weight\._data|weight\._scale)$"), "quanto"),
    (re.compile(r"\.(_weight_qdata|_weight_scale|_weight_zero_point)$"), "torchao"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(proj_down|smooth_factor(_orig)?|wscales)$"), "SVDQuant"),
    (re.compile(r"\.(weight_scale_inv|scale_weight|weight_scale)$"), "scaled float8"),
    (re.compile(r"(^|\.)scaled_fp8$"), "scaled float8 whose scales are missing"),
)


def named(names: Iterable[str], most: int = 3) -> str:
    """``a, b, c and 4 more``."""
    names = list(names)
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def check_config(cls: type[nn.Module], config: Mapping[str, Any], origin: str) -> None:
    """Refuse a configuration of another class or of quantised weights.

    Raises
    ------
    InvalidInputError
        It is none.
    UnsupportedError
        The message names the class or the quantiser.
    """
    if not isinstance(config, Mapping):
        raise InvalidInputError(f"{origin}: its config.json is no configuration, download it again")
    found = config.get("_class_name")
    if found is not None and found != cls.__name__:
        raise UnsupportedError(
            f"{origin} is a {found}, not a {cls.__name__}: choose the model it belongs to"
        )
    quantised = config.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else quantised
        raise UnsupportedError(
            f"{origin} is quantised with {method} (quantization_config in its config.json): "
            "export the checkpoint with 16- or 32-bit weights that it was made from"
        )


def check_quantised(names: Iterable[str], origin: str) -> None:
    """Refuse tensors that a quantiser has left, by their names."""
    names = list(names)
    for pattern, quantiser in _QUANTISERS:
        marks = [name for name in names if pattern.search(name)]
        if marks:
            raise UnsupportedError(
                f"checkpoint {origin!r} is quantised ({quantiser}: {named(marks)}); export the "
                "checkpoint with 16- or 32-bit weights that it was made from"
            )


def check_names(
    missing: Iterable[str],
    unknown: Iterable[str],
    origin: str,
    *,
    wanted: str = CONFIG,
) -> None:
    """Refuse a checkpoint whose tensors are not those of its configuration, or of `wanted`."""
    missing, unknown = list(missing), list(unknown)
    check_quantised(unknown, origin)
    if missing or unknown:
        parts = [
            f"{label} {named(names, 1)}"
            for label, names in (("lack", missing), ("have, unknown to it,", unknown))
            if names
        ]
        raise InvalidInputError(
            f"checkpoint {origin!r} does not fit {wanted}: the weights {' and '.join(parts)}; "
            "download it again, or choose the model it belongs to"
        )


def check_shapes(
    found: Shapes,
    expected: Shapes,
    origin: str,
    *,
    ignored: Iterable[str] = (),
    wanted: str = CONFIG,
) -> None:
    """Refuse tensors that are not exactly those expected.

    Parameters
    ----------
    found, expected
        Shapes by name.
    origin
        The checkpoint.
    ignored
        Patterns of names that may be there too.
    wanted
        What they are expected of, for the message.

    Raises
    ------
    InvalidInputError
        Tensors are missing, left over or of another shape; the message names the first.
    UnsupportedError
        They are quantised.
    """
    patterns = [re.compile(pattern) for pattern in ignored]
    missing = sorted(set(expected) - set(found))
    unknown = sorted(
        name
        for name in set(found) - set(expected)
        if not any(pattern.search(name) for pattern in patterns)
    )
    check_names(missing, unknown, origin, wanted=wanted)
    for name, shape in expected.items():
        if found[name] != shape:
            raise InvalidInputError(
                f"checkpoint {origin!r} does not fit {wanted}: {name} has "
                f"shape {found[name]}, expected {shape}"
            )


def check_index_metadata(metadata: Mapping[str, Any], origin: str) -> None:
    """Refuse an index that says its weights are quantised."""
    for key in ("quantization_config", "quantization", "quant_method"):
        if metadata.get(key):
            raise UnsupportedError(
                f"checkpoint {origin!r} is quantised (its index says {key}="
                f"{metadata[key]!r}); export the checkpoint with 16- or 32-bit weights that it was "
                "made from"
            )


def first_line(error: BaseException) -> str:
    """Of an error's message, or its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]
