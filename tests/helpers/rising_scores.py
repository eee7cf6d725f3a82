"""Heads whose scores rise along the keys, so that an online softmax must follow them."""

from __future__ import annotations

import torch
from torch import Tensor

GRID = (1, 23, 41)
TOKENS = 23 * 41
SHORT = 700
"""A kv_len that ends inside a tile, for half of the batch."""
RISES = [(3.0, 20), (12.0, 50), (60.0, 150), (200.0, 300)]
"""Rises and steps that exponentials of float16, then of float32, survive only for some tiles."""
SPIKES = [20.0, 300.0]
"""Scores of one key, which float16 and float32 do not survive."""
_GAIN = 8.0  # of queries along the direction of the scores, beside noise of 1


def levels_of_rise(rise: float, step: int) -> Tensor:
    """[TOKENS]: `rise` more every `step` keys."""
    return torch.arange(TOKENS) // step * rise


def levels_of_spike(height: float) -> Tensor:
    """[TOKENS]: `height` at the last key below ``SHORT``, twice that behind it, 0 elsewhere."""
    levels = torch.zeros(TOKENS)
    levels[SHORT - 1] = height
    levels[SHORT:] = 2 * height
    return levels


LEVELS = {f"rise {rise}": levels_of_rise(*rise) for rise in RISES} | {
    f"spike {height}": levels_of_spike(height) for height in SPIKES
}


def leveled_heads(
    levels: Tensor, batch: int, heads: int, head_size: int, dtype: torch.dtype, device: str
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [batch, heads, TOKENS, head_size] whose scaled scores are about `levels`.

    For every third query they are as far below 0, so that neighbouring rows do not move together.
    """
    generator = torch.Generator(device).manual_seed(int(levels.sum()))

    def noise(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    shape = (batch, heads, TOKENS, head_size)
    direction = torch.nn.functional.normalize(noise(head_size), dim=0)
    sign = 1.0 - 2.0 * (torch.arange(TOKENS, device=device) % 3 == 0)
    q = noise(*shape) + _GAIN * sign[:, None] * direction
    k = noise(*shape) + levels.to(device)[:, None] * head_size**0.5 / _GAIN * direction
    return q.to(dtype), k.to(dtype), noise(*shape).to(dtype)
