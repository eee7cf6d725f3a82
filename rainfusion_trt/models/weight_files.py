"""The weight files of a diffusers transformer, looked at before torch loads them.

Headers say everything that can be wrong with a checkpoint but its values: names, shapes and element
types. Reading them takes milliseconds, loading takes minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.checkpoint_checks import (
    CONFIG,
    Shapes,
    check_index_metadata,
    check_shapes,
    first_line,
    named,
)
from rainfusion_trt.models.float8 import (
    COMFY_HEADER,
    SCALES,
    UNUSED_WITH_SCALES,
    check_mark,
    check_scale_type,
    shaped,
)

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
    origin
        What errors call them.
    shapes, dtypes
        Of every tensor, by its name; element types as safetensors writes them.
    places
        File of every tensor, and its name there.
    marks
        What headers say of a quantisation, as JSON, by the file.
    """

    folder: Path
    files: tuple[str, ...]
    variant: str | None = None
    origin: str = ""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    marks: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def find(cls, folder: Path) -> WeightFiles | None:
        """The files that diffusers would read, or the only variant; None where it reads pickles.

        Raises
        ------
        InvalidInputError
            There are none, several variants, a shard is missing, a file cannot be read, or two
            hold a tensor of one name.
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
    def of_file(cls, path: Path) -> WeightFiles:
        """One file of any name.

        Raises
        ------
        InvalidInputError
            It cannot be read.
        """
        return cls._read(path.parent, (path.name,), None, origin=str(path))

    @classmethod
    def _opened(cls, folder: Path, name: str, variant: str | None) -> WeightFiles:
        files = (name,) if name.endswith(".safetensors") else _shards(folder / name)
        return cls._read(folder, files, variant)

    @classmethod
    def _read(
        cls, folder: Path, files: tuple[str, ...], variant: str | None, *, origin: str = ""
    ) -> WeightFiles:
        from safetensors import SafetensorError, safe_open

        found = cls(folder, files, variant, origin or str(folder))
        for file in files:
            try:
                with safe_open(folder / file, "pt") as content:
                    for name in content.keys():  # noqa: SIM118  (no dict)
                        if name in found.places:
                            raise InvalidInputError(
                                f"checkpoint {found.origin!r} has {name} twice, in "
                                f"{found.places[name][0]} and {file}, of which one is not its own: "
                                "download it again"
                            )
                        part = content.get_slice(name)
                        found.shapes[name] = tuple(part.get_shape())
                        found.dtypes[name] = part.get_dtype()
                        found.places[name] = file, name
                    header = content.metadata() or {}
                    if COMFY_HEADER in header:
                        found.marks[file] = header[COMFY_HEADER].encode()
            except (SafetensorError, OSError) as error:
                raise InvalidInputError(
                    f"checkpoint {found.origin!r}: its weights {file} cannot be read "
                    f"({first_line(error)}); download them again"
                ) from error
            except (RuntimeError, MemoryError) as error:
                raise InvalidInputError(
                    f"checkpoint {found.origin!r}: its weights {file} do not fit into the address "
                    f"space of this process ({first_line(error)}); allow it more memory"
                ) from error
        return found

    def check(
        self,
        expected: Shapes,
        ignored: Iterable[str] = (),
        *,
        converted: Callable[[Shapes], Shapes] | None = None,
        wanted: str = CONFIG,
    ) -> None:
        """Refuse files that are not exactly the tensors of a configuration.

        Parameters
        ----------
        expected
            Shape of every tensor that there must be.
        ignored
            Patterns of names that may be there too.
        converted
            What the weights of the files are under the expected names; None: they have these.
        wanted
            What they are expected of, for the message.

        Raises
        ------
        InvalidInputError
            Tensors are missing, left over or of another shape; the message names the first.
        UnsupportedError
            They are quantised.
        """
        ignored = tuple(ignored)
        self._check_marks()
        weights = self.weights()
        found = weights if converted is None else converted(weights)
        check_shapes(found, expected, self.origin, ignored=ignored, wanted=wanted)
        counted = [n for n in weights if not any(re.search(pattern, n) for pattern in ignored)]
        self._check_dtypes(counted, self._scale_names())

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all but the scales and marks that stand beside scaled weights."""
        scaled = self._scale_names()
        beside = set(scaled.values())
        return {
            name: shape
            for name, shape in self.shapes.items()
            if name not in beside and not (scaled and UNUSED_WITH_SCALES.fullmatch(name))
        }

    def stored_name(self, name: str) -> str:
        """What its file calls a tensor."""
        return self.places[name][1]

    def _check_marks(self) -> None:
        marks = {
            name: bytes(self.tensor(name).to(torch.uint8).tolist())
            for name in self.shapes
            if name.endswith(".comfy_quant")
        }
        for name, mark in {**marks, **self.marks}.items():
            check_mark(name, mark, self.origin)

    def _check_dtypes(self, expected: Iterable[str], scaled: Mapping[str, str]) -> None:
        integers = [name for name in expected if self.dtypes[name] not in _FLOATS]
        if integers:
            raise UnsupportedError(
                f"checkpoint {self.origin!r} is quantised: {named(integers)} "
                f"is stored as {self.dtypes[integers[0]]}; export the checkpoint with 16- or "
                "32-bit weights that it was made from"
            )
        for scale in scaled.values():
            check_scale_type(scale, self.dtypes[scale], self.origin)
        if not scaled:
            return
        for name in expected:
            is_float8 = self.dtypes[name] in _FLOAT8
            if is_float8 and name not in scaled and len(self.shapes[name]) > 1:
                raise InvalidInputError(
                    f"checkpoint {self.origin!r} has scales for its float8 weights, but none "
                    f"for {name}: it is incomplete, download it again"
                )
            if not is_float8 and name in scaled:
                raise UnsupportedError(
                    f"checkpoint {self.origin!r} has a scale {scaled[name]} for {name}, which "
                    f"is {self.dtypes[name]} and not float8: which of both is right cannot be told"
                )

    def _scale_names(self) -> dict[str, str]:
        """Weight -> its scale, where the files have one."""
        return {
            name.removesuffix(suffix) + ".weight": name
            for name in self.shapes
            for suffix in SCALES
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
            weight: shaped(scale, self.tensor(scale).float(), self.shapes[weight], self.origin)
            for weight, scale in self._scale_names().items()
        }

    def tensor(self, name: str) -> Tensor:
        """One tensor as it is stored."""
        from safetensors import safe_open

        file, stored = self.places[name]
        with safe_open(self.folder / file, "pt") as content:
            return content.get_tensor(stored)

    def values(self, float32: Collection[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """All weights, multiplied out.

        Parameters
        ----------
        float32
            Names of those in float32 ...
        dtype
            ... and the type of the others.
        """
        scales = self.scales()
        for name in self.weights():
            values = self.tensor(name)
            if name in scales:
                values = values.float() * scales[name]
            yield name, values.to(torch.float32 if name in float32 else dtype)

    def renamed(self, names: Mapping[str, str]) -> WeightFiles:
        """The tensors of `names`, which gives the new name of each."""
        return replace(
            self,
            shapes={new: self.shapes[old] for old, new in names.items()},
            dtypes={new: self.dtypes[old] for old, new in names.items()},
            places={new: self.places[old] for old, new in names.items()},
        )


def _shards(index: Path) -> tuple[str, ...]:
    """Files of a sharded checkpoint, all of them there."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        files = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            f"checkpoint {str(index.parent)!r}: {index.name} is no index of safetensors files "
            f"({first_line(error)}); download it again"
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


def _no_weights(folder: Path, names: list[str]) -> str:
    gguf = [name for name in names if name.endswith(".gguf")]
    others = [name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".ckpt"))]
    start = f"checkpoint {str(folder)!r} could not be loaded: it holds no {_STEM}.safetensors"
    if gguf:
        return f"{start}, only {named(gguf)}; give the file itself in place of the folder"
    if others:
        return f"{start}, only {named(others)}; give the file itself in place of the folder"
    return f"{start}; download the checkpoint again"
