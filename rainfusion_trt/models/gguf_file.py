"""GGUF files of a transformer, as ComfyUI's users have them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.checkpoint_checks import CONFIG, Shapes, check_shapes, first_line

# What gguf multiplies out to numbers by itself.
_KINDS = frozenset(
    (
        *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"),
    )
)
# GGUF has four axes at most; where a weight has more, ComfyUI's converter notes its shape here.
_SHAPE = "comfy.gguf.orig_shape."


@dataclass(frozen=True)
class GgufFile:
    """One GGUF file, with the interface of `WeightFiles`.

    Attributes
    ----------
    origin
        The file, for errors.
    shapes
        Of every weight when it is multiplied out, by its name.
    tensors
        As gguf's reader has them, by the same names.
    """

    origin: str
    shapes: dict[str, tuple[int, ...]]
    tensors: dict[str, Any]

    @classmethod
    def of_file(cls, path: Path) -> GgufFile:
        """Read what a file holds.

        Raises
        ------
        InvalidInputError
            It cannot be read, or the package that reads it is missing.
        """
        try:
            import gguf
        except ImportError as error:
            raise InvalidInputError(
                f"checkpoint {str(path)!r} is GGUF, which the package gguf reads: install it, or "
                "the extra rainfusion-trt[gguf]"
            ) from error
        try:
            reader = gguf.GGUFReader(path)
            tensors = {tensor.name: tensor for tensor in reader.tensors}
            shapes = {name: _shape(reader, tensor) for name, tensor in tensors.items()}
        except (ValueError, OSError, KeyError, IndexError, TypeError, OverflowError) as error:
            raise InvalidInputError(
                f"checkpoint {str(path)!r} cannot be read ({first_line(error)}); download it again"
            ) from error
        return cls(str(path), shapes, tensors)

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors: scales are inside of them."""
        return dict(self.shapes)

    def check(
        self,
        expected: Shapes,
        ignored: Iterable[str] = (),
        *,
        converted: Callable[[Shapes], Shapes] | None = None,
        wanted: str = CONFIG,
    ) -> None:
        """Refuse another model's tensors and integers; as `WeightFiles.check`."""
        found = self.shapes if converted is None else converted(self.shapes)
        check_shapes(found, expected, self.origin, ignored=ignored, wanted=wanted)
        for name, tensor in self.tensors.items():
            kind = tensor.tensor_type.name
            if kind not in _KINDS:
                raise UnsupportedError(
                    f"checkpoint {self.origin!r}: {name} is {kind}, which is no format of weights "
                    "that gguf multiplies out; take a file of another quantisation, such as Q8_0"
                )

    def values(self, float32: Collection[str], dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
        """All weights, multiplied out in float32; as `WeightFiles.values`.

        By gguf's own arithmetic: diffusers' has the scales in float16, which costs three digits.
        """
        from gguf import dequantize

        for name, tensor in self.tensors.items():
            values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            kind = torch.float32 if name in float32 else dtype
            yield name, values.to(kind).reshape(self.shapes[name])

    def stored_name(self, name: str) -> str:
        """What the file calls a tensor."""
        return str(self.tensors[name].name)

    def renamed(self, names: Mapping[str, str]) -> GgufFile:
        """The tensors of `names`, which gives the new name of each."""
        return replace(
            self,
            shapes={new: self.shapes[old] for old, new in names.items()},
            tensors={new: self.tensors[old] for old, new in names.items()},
        )


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    noted = reader.get_field(f"{_SHAPE}{tensor.name}")
    if noted is None:
        return tuple(int(extent) for extent in reversed(tensor.shape))
    shape = tuple(int(noted.parts[index][0]) for index in noted.data)
    count = 1
    for extent in shape:
        count *= extent
    if count != int(tensor.n_elements):
        raise ValueError(f"{tensor.name} has {tensor.n_elements} values, noted are {shape}")
    return shape
