"""Example values for graph inputs: seeded, of a given shape and dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Shape, dtype and a generator, on whose device the values are made -> the values.
Example = Callable[[tuple[int, ...], torch.dtype, torch.Generator], Tensor]


def normal(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Normal values, drawn in float32, so that one seed means one clip in every precision."""
    return torch.randn(shape, generator=generator, device=generator.device).to(dtype)


def constant(value: float) -> Example:
    """The same value everywhere."""

    def full(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
        return torch.full(shape, value, dtype=dtype, device=generator.device)

    return full


def prompt_masks(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[B, tokens], 1 for prompts of different length, each shorter than its padding of 0."""
    batch, tokens = shape
    lengths = torch.arange(batch, device=generator.device) % 4 * (tokens // 8) + tokens // 4
    positions = torch.arange(tokens, device=generator.device)
    return (positions < lengths[:, None]).to(dtype)


def prompt_mask(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[B, tokens], 1 for a prompt of a third of the tokens, 0 for the padding behind it."""
    mask = torch.ones(shape, dtype=dtype, device=generator.device)
    mask[:, shape[1] // 3 :] = 0
    return mask


def first_frame(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """[B, 1, T, ...], 1 in the first frame, which is given, and 0 in those to be made."""
    mask = torch.zeros(shape, dtype=dtype, device=generator.device)
    mask[:, :, :1] = 1
    return mask
