"""The weight files of a diffusers transformer, looked at before torch loads them.

Headers say everything that can be wrong with a checkpoint but its values: names, shapes and element
types. Reading them takes milliseconds, loading takes minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError

_STEM = "diffusion_pytorch_model"
_INDEX = f"{_STEM}.safetensors.index"
# A variant is a precision or an average, such as fp16 or ema, in the name of every file.
_VARIANT = re.compile(
    rf"{re.escape(_INDEX)}\.(?P<index>[^.]+)\.json"
    rf"|{_STEM}\.(?P<file>[^.]+)\.safetensors(\.index\.json)?"
)
_SHARD = re.compile(r"-\d{5}-of-\d{5}")
_FLOATS = frozenset(("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"))
_FLOAT8 = frozenset(("F8_E4M3", "F8_E5M2"))
# What stands beside a float8 weight: its scale, as ComfyUI, musubi and modelopt call it ...
_SCALES = (".scale_weight", ".weight_scale")
# ... and what a graph that multiplies in 16 bits has no use for: scales of activations, marks.
_UNUSED_WITH_SCALES = re.compile(r"(.+\.)?(scale_input|input_scale|scaled_fp8|comfy_quant)")
_QUANTISERS = (
    (re.compile(r"\.(absmax|SCB|quant_map|nested_absmax|quant_state\..+)$"), "bitsandbytes"),
    (re.compile(r"(_quantizer\._amax|\.weight_scale_2)$"), "modelopt"),
    (re.compile(r"\.(weight\._data|weight\._scale)$"), "quanto"),
    (re.compile(r"\.(_weight_qdata|_weight_scale|_weight_zero_point)$"), "torchao"),
    (re.compile(r"\.(qweight|qzeros|g_idx)$"), "GPTQ or AWQ"),
    (re.compile(r"\.(weight_scale_inv|scale_weight|weight_scale)$"), "scaled float8"),
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


@dataclass(frozen=True)
class WeightFiles:
    """The safetensors files of one transformer.

    Attributes
    ----------
    folder
        Where they lie.
    files
        Their names.
    variant
        What diffusers calls them by; None for those without one.
    shapes, dtypes
        Of every tensor, by its name; element types as safetensors writes them.
    """

    folder: Path
    files: tuple[str, ...]
    variant: str | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path) -> WeightFiles | None:
        """The files that diffusers would read, or the only variant; None where it reads pickles.

        Raises
        ------
        InvalidInputError
            There are none, several variants, a shard is missing, or a file cannot be read.
        """
        names = sorted(path.name for path in folder.iterdir())
        plain = [name for name in (f"{_INDEX}.json", f"{_STEM}.safetensors") if name in names]
        if plain:
            return cls._opened(folder, plain[0], None)
        variants: dict[str, str] = {}
        for name in names:
            match = _VARIANT.fullmatch(name)
            if match and not _SHARD.search(name):
                variants.setdefault(match["index"] or match["file"], name)
        if len(variants) == 1:
            ((variant, name),) = variants.items()
            return cls._opened(folder, name, variant)
        if variants:
            raise InvalidInputError(
                f"checkpoint {str(folder)!r} could not be loaded: it holds the variants "
                f"{named(variants)} and no {_STEM}.safetensors; keep the files of one variant in "
                "it, as diffusers' variant= does"
            )
        if any(name.startswith(_STEM) and name.endswith((".bin", ".bin.index.json"))
               for name in names):  # fmt: skip
            return None
        raise InvalidInputError(_no_weights(folder, names))

    @classmethod
    def of_files(cls, folder: Path, files: Iterable[str]) -> WeightFiles:
        """These files of a folder.

        Raises
        ------
        InvalidInputError
            One cannot be read.
        """
        return cls._read(folder, tuple(files), None)

    @classmethod
    def _opened(cls, folder: Path, name: str, variant: str | None) -> WeightFiles:
        files = (name,) if name.endswith(".safetensors") else _shards(folder / name)
        return cls._read(folder, files, variant)

    @classmethod
    def _read(cls, folder: Path, files: tuple[str, ...], variant: str | None) -> WeightFiles:
        from safetensors import SafetensorError, safe_open

        found = cls(folder, files, variant)
        for file in files:
            try:
                with safe_open(folder / file, "pt") as content:
                    for name in content.keys():  # noqa: SIM118  (no dict)
                        part = content.get_slice(name)
                        found.shapes[name] = tuple(part.get_shape())
                        found.dtypes[name] = part.get_dtype()
                        found.places[name] = file
            except (SafetensorError, OSError) as error:
                raise InvalidInputError(
                    f"checkpoint {str(folder)!r}: its weights {file} cannot be read "
                    f"({_first_line(error)}); download them again"
                ) from error
        return found

    def check(self, expected: Mapping[str, tuple[int, ...]], ignored: Iterable[str] = ()) -> None:
        """Refuse files that are not exactly the tensors of a configuration.

        Parameters
        ----------
        expected
            Shape of every tensor that there must be.
        ignored
            Patterns of names that may be there too.

        Raises
        ------
        InvalidInputError
            Tensors are missing, left over or of another shape; the message names the first.
        UnsupportedError
            They are quantised.
        """
        scaled = self._scale_names()
        patterns = [re.compile(pattern) for pattern in ignored]
        missing = sorted(set(expected) - set(self.shapes))
        unknown = sorted(
            name
            for name in set(self.shapes) - set(expected) - set(scaled.values())
            if not any(pattern.search(name) for pattern in patterns)
            and not (scaled and _UNUSED_WITH_SCALES.fullmatch(name))
        )
        check_names(missing, unknown, str(self.folder))
        for name, shape in expected.items():
            if self.shapes[name] != shape:
                raise InvalidInputError(
                    f"checkpoint {str(self.folder)!r} does not fit its config.json: {name} has "
                    f"shape {self.shapes[name]}, expected {shape}"
                )
        self._check_dtypes(expected, scaled)

    def _check_dtypes(self, expected: Iterable[str], scaled: Mapping[str, str]) -> None:
        integers = [name for name in expected if self.dtypes[name] not in _FLOATS]
        if integers:
            raise UnsupportedError(
                f"checkpoint {str(self.folder)!r} is quantised: {named(integers)} "
                f"is stored as {self.dtypes[integers[0]]}; export the checkpoint with 16- or "
                "32-bit weights that it was made from"
            )
        if not scaled:
            return
        for name in expected:
            is_float8 = self.dtypes[name] in _FLOAT8
            if is_float8 and name not in scaled and len(self.shapes[name]) > 1:
                raise InvalidInputError(
                    f"checkpoint {str(self.folder)!r} has scales for its float8 weights, but none "
                    f"for {name}: it is incomplete, download it again"
                )
            if not is_float8 and name in scaled:
                raise UnsupportedError(
                    f"checkpoint {str(self.folder)!r} has a scale {scaled[name]} for {name}, which "
                    f"is {self.dtypes[name]} and not float8: which of both is right cannot be told"
                )

    def _scale_names(self) -> dict[str, str]:
        """Weight -> its scale, where the files have one."""
        return {
            name.removesuffix(suffix) + ".weight": name
            for name in self.shapes
            for suffix in _SCALES
            if name.endswith(suffix) and name.removesuffix(suffix) + ".weight" in self.shapes
        }

    def scales(self) -> dict[str, Tensor]:
        """What the float8 weights are to be multiplied with, shaped to do so.

        Raises
        ------
        UnsupportedError
            A scale is of a shape that says nothing about where it belongs.
        """
        return {
            weight: self._shaped(scale, self.tensor(scale).float(), self.shapes[weight])
            for weight, scale in self._scale_names().items()
        }

    def _shaped(self, name: str, scale: Tensor, weight: tuple[int, ...]) -> Tensor:
        """One for all, one for every row, or one for every part of a row."""
        if not bool((scale.isfinite() & (scale != 0)).all()):
            raise InvalidInputError(
                f"checkpoint {str(self.folder)!r}: the scale {name} is 0 or not finite; download "
                "it again"
            )
        if scale.numel() == 1:
            return scale.reshape(())
        rows, columns = weight[0], weight[1] if len(weight) == 2 else 0
        if scale.numel() == rows == scale.shape[0]:
            return scale.reshape(rows, *[1] * (len(weight) - 1))
        parts = scale.numel() // rows
        if (
            parts
            and columns % parts == 0
            and tuple(scale.shape) in ((rows, parts), (rows, parts, 1))
        ):
            return scale.reshape(rows, parts).repeat_interleave(columns // parts, dim=1)
        raise UnsupportedError(
            f"checkpoint {str(self.folder)!r}: the scale {name} of shape {tuple(scale.shape)} "
            f"for a weight of shape {weight} is of no known kind (one for all, for every row or "
            "for parts of a row)"
        )

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        from safetensors import safe_open

        with safe_open(self.folder / self.places[name], "pt") as content:
            return content.get_tensor(name)


def check_names(missing: Iterable[str], unknown: Iterable[str], origin: str) -> None:
    """Refuse a checkpoint whose tensors are not those of its configuration."""
    missing, unknown = list(missing), list(unknown)
    for pattern, quantiser in _QUANTISERS:
        marks = [name for name in unknown if pattern.search(name)]
        if marks:
            raise UnsupportedError(
                f"checkpoint {origin!r} is quantised ({quantiser}: {named(marks)}); export the "
                "checkpoint with 16- or 32-bit weights that it was made from"
            )
    if missing or unknown:
        parts = [
            f"{label} {named(names, 1)}"
            for label, names in (("lack", missing), ("have, unknown to it,", unknown))
            if names
        ]
        raise InvalidInputError(
            f"checkpoint {origin!r} does not fit its config.json: the weights {' and '.join(parts)}"
            "; download it again, or choose the model it belongs to"
        )


def apply_scales(module: nn.Module, scales: Mapping[str, Tensor]) -> None:
    """Multiply weights that hold their float8 values."""
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, scale in scales.items():
            weight = parameters[name]
            weight.copy_(weight.float() * scale.to(weight.device))


def _shards(index: Path) -> tuple[str, ...]:
    """Files of a sharded checkpoint, all of them there."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        files = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"checkpoint {str(index.parent)!r}: {index.name} is no index of safetensors files "
            f"({_first_line(error)}); download it again"
        ) from error
    metadata = content.get("metadata")
    check_index_metadata(metadata if isinstance(metadata, Mapping) else {}, str(index.parent))
    missing = [name for name in files if not (index.parent / name).is_file()]
    if missing:
        raise InvalidInputError(
            f"checkpoint {str(index.parent)!r} could not be loaded: {named(missing)} "
            f"of {index.name} is missing; download it again"
        )
    return tuple(files)


def check_index_metadata(metadata: Mapping[str, Any], origin: str) -> None:
    """Refuse an index that says its weights are quantised."""
    for key in ("quantization_config", "quantization", "quant_method"):
        if metadata.get(key):
            raise UnsupportedError(
                f"checkpoint {origin!r} is quantised (its index says {key}="
                f"{metadata[key]!r}); export the checkpoint with 16- or 32-bit weights that it was "
                "made from"
            )


def _no_weights(folder: Path, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    others = [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".ckpt"))]
    start = f"checkpoint {str(folder)!r} could not be loaded: it holds no {_STEM}.safetensors"
    if gguf:
        return (
            f"{start}, only {named(gguf)}, which is quantised (GGUF); export the checkpoint with "
            "16- or 32-bit weights that it was made from"
        )
    if others:
        return (
            f"{start}, only {named(others)}; convert it to diffusers' format with "
            "from_single_file() and save_pretrained()"
        )
    return f"{start}; download the checkpoint again"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
