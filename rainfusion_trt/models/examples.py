"""Seeded random values for example inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def normal_source(
    transformer: nn.Module, device: str | torch.device, seed: int
) -> Callable[..., Tensor]:
    """A seeded source of normal values: the extents of a shape -> a tensor of that shape.

    Drawn in float32 and given in the transformer's dtype, so that one seed means the same clip in
    every precision.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device)
        return values.to(transformer.dtype)

    return normal
