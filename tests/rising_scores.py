"""Heads whose scores rise along the keys, so that an online softmax must follow them."""

from __future__ import annotations

import torch
from torch import Tensor

RISES = [(3.0, 20), (12.0, 50), (60.0, 150), (200.0, 300)]
"""Rises and steps that exponentials of float16, then of float32, survive only for some tiles."""


def rising_scores(
    shape: tuple[int, int, int, int], rise: float, step: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of `shape` [B, N, S, D], on which scores rise or fall in steps.

    Parameters
    ----------
    rise
        What a step adds to the scaled scores of a query, about; it takes as much from those of
        every third query, so that neighbouring rows do not move together.
    step
        Keys between two steps.
    """
    generator = torch.Generator(device).manual_seed(int(rise) * 1000 + step)

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    tokens, head_size = shape[2:]
    gain = 8.0  # of q along the direction, beside noise of 1
    direction = torch.nn.functional.normalize(noise(head_size), dim=0)
    level = torch.arange(tokens, device=device) // step * rise
    sign = 1.0 - 2.0 * (torch.arange(tokens, device=device) % 3 == 0)
    q = noise(*shape) + gain * sign[:, None] * direction
    k = noise(*shape) + level[:, None] * head_size**0.5 / gain * direction
    return q.to(dtype), k.to(dtype), noise(*shape).to(dtype)
