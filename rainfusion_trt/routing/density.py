"""``DensityMeter``: the share of the token pairs that the attentions of a forward computed."""

from __future__ import annotations

import torch
from torch import Tensor

from rainfusion_trt.operator import measured as measured  # registers the operator


class DensityMeter:
    """Adds up densities on the device; nothing waits for it until somebody reads the sum.

    It makes new tensors and writes none, so that torch.compile traces it like the attention itself.

    Attributes
    ----------
    total : Tensor
        Sum over the attentions of the latest forward of their mean density, float32 [1].
    """

    def __init__(self) -> None:
        self.total = torch.zeros(1, dtype=torch.float32)

    def begin(self, like: Tensor) -> None:
        """A forward with inputs on the device of `like`."""
        self.total = torch.zeros(1, dtype=torch.float32, device=like.device)

    def add(self, density: Tensor, heads: int | None = None) -> None:
        """Heads [B, n] of an attention of `heads`, all where it is not said, have these densities.

        Heads that attend one group after the other come in as many calls.
        """
        share = 1.0 if heads is None else density.shape[1] / heads
        self.total = self.total + density.mean() * share
