"""What one layer of a LoRA file adds to weights, in the forms trainers store it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError


class Change(ABC):
    """A change of a weight."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight, [out, in, ...]."""

    @abstractmethod
    def rows(self, rows: slice) -> Tensor:
        """These output rows of it, float32."""


@dataclass(frozen=True)
class Full(Change):
    """The change itself (``.diff``, ``.diff_b``)."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    def rows(self, rows: slice) -> Tensor:
        return self.values[rows].float()


@dataclass(frozen=True)
class LowRank(Change):
    """scale * B A: A is [rank, in, ...], B is [out, rank, 1, ...]."""

    down: Tensor
    up: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    def rows(self, rows: slice) -> Tensor:
        up = self.up[rows].float().flatten(1)
        product = up @ self.down.float().flatten(1)
        return self.scale * product.unflatten(1, self.down.shape[1:])


@dataclass(frozen=True)
class Kronecker(Change):
    """scale * kron(w1, w2), LoKr's."""

    first: Tensor
    second: Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(a * b for a, b in zip(self.first.shape, self.second.shape, strict=True))

    def rows(self, rows: slice) -> Tensor:
        return self.scale * torch.kron(self.first.float(), self.second.float())[rows]


@dataclass(frozen=True)
class Hadamard(Change):
    """scale * (w1a w1b) * (w2a w2b), LoHa's."""

    factors: tuple[Tensor, ...]
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.factors[0].shape[0], self.factors[1].shape[1])

    def rows(self, rows: slice) -> Tensor:
        first_a, first_b, second_a, second_b = (factor.float() for factor in self.factors)
        return self.scale * (first_a[rows] @ first_b) * (second_a[rows] @ second_b)


LORA = ("A.weight", "B.weight")
_LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_BESIDE = frozenset(("alpha", "B.bias", "diff_b"))  # what may stand beside any of the forms


def change_of(layer: str, tensors: Mapping[str, Tensor], default_scale: float) -> Change | None:
    """The change of a layer's weight, None if the file only has one of its bias.

    Parameters
    ----------
    layer
        For the message of an error.
    tensors
        By their part in it: ``A.weight``, ``lokr_w1``, ``diff``, ``alpha`` and so on.
    default_scale
        Of a low-rank change whose file has no alpha for it.

    Raises
    ------
    InvalidInputError
        A part is missing, one too many or does not fit the others; the message names the layer.
    """
    forms = {name.partition("_")[0] for name in tensors.keys() - _BESIDE - set(LORA)}
    if tensors.keys() & set(LORA):
        forms.add("lora")
    if len(forms) > 1:
        raise InvalidInputError(
            f"{layer} has changes of several forms, {', '.join(sorted(tensors))}; which of them "
            "counts cannot be told"
        )
    alpha = _alpha(layer, tensors)
    if "lora" in forms:
        down, up = _parts(layer, tensors, LORA)
        return _low_rank(layer, down, up, alpha, default_scale)
    if "lokr" in forms:
        return _kronecker(layer, tensors, alpha)
    if "hada" in forms:
        return _hadamard(layer, _parts(layer, tensors, _LOHA), alpha)
    return Full(tensors["diff"]) if "diff" in forms else None


def _hadamard(layer: str, factors: tuple[Tensor, ...], alpha: float | None) -> Hadamard:
    first, second = factors[:2], factors[2:]
    for left, right in (first, second):
        _check_product(layer, left, right)
    if (len(first[0]), first[1].shape[1]) != (len(second[0]), second[1].shape[1]):
        raise InvalidInputError(f"{layer}: its two products of LoHa are of different sizes")
    return Hadamard((*first, *second), 1.0 if alpha is None else alpha / first[1].shape[0])


def _low_rank(
    layer: str, down: Tensor, up: Tensor, alpha: float | None, default_scale: float
) -> LowRank:
    if up.dim() != down.dim() or down.dim() < 2 or any(extent != 1 for extent in up.shape[2:]):
        raise InvalidInputError(
            f"{layer}.lora_A and lora_B are {list(down.shape)} and {list(up.shape)}, which are no "
            "factors of one weight"
        )
    if down.shape[0] != up.shape[1]:
        raise InvalidInputError(
            f"{layer}.lora_A has rank {down.shape[0]} and lora_B rank {up.shape[1]}; "
            "the file is damaged"
        )
    return LowRank(down, up, default_scale if alpha is None else alpha / down.shape[0])


def _kronecker(layer: str, tensors: Mapping[str, Tensor], alpha: float | None) -> Kronecker:
    """Either factor whole or as a product; alpha counts where one is a product (LyCORIS' rule)."""
    factors: list[Tensor] = []
    rank = None
    for name in ("lokr_w1", "lokr_w2"):
        products = tensors.keys() & {f"{name}_a", f"{name}_b"}
        if name in tensors and products:
            raise InvalidInputError(f"{layer} has {name} and {', '.join(sorted(products))}")
        if name in tensors:
            factors.append(tensors[name])
        else:
            left, right = _parts(layer, tensors, (f"{name}_a", f"{name}_b"))
            _check_product(layer, left, right)
            factors.append(left.float() @ right.float())
            rank = right.shape[0]
    if any(factor.dim() != 2 for factor in factors):
        raise InvalidInputError(f"{layer}: LoKr of a convolution is not read")
    first, second = factors
    return Kronecker(first, second, 1.0 if alpha is None or rank is None else alpha / rank)


def _parts(layer: str, tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    for name in names:
        if name not in tensors:
            spelled = f"lora_{name}" if name in LORA else name
            raise InvalidInputError(f"no {layer}.{spelled}: incomplete")
    return tuple(tensors[name] for name in names)


def _check_product(layer: str, left: Tensor, right: Tensor) -> None:
    if left.dim() != 2 or right.dim() != 2 or left.shape[1] != right.shape[0]:
        raise InvalidInputError(
            f"{layer}: its factors of shape {list(left.shape)} and {list(right.shape)} cannot be "
            "multiplied; convolutions with them are not read"
        )


def _alpha(layer: str, tensors: Mapping[str, Tensor]) -> float | None:
    alpha = tensors.get("alpha")
    if alpha is None:
        return None
    if alpha.numel() != 1:
        raise InvalidInputError(f"{layer}.alpha has {alpha.numel()} values, expected one")
    if alpha.is_complex():
        raise InvalidInputError(f"{layer}.alpha is {str(alpha.dtype)[6:]}, expected a number")
    return float(alpha)
