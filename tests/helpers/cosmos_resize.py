"""Cosmos without torchvision, from which diffusers takes one function for the padding mask.

Torchvision's wheels for CUDA do not load beside PyTorch for the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace

import torch.nn.functional as F
from diffusers.models.transformers import transformer_cosmos
from torch import Tensor


def _resize(image: Tensor, size: Sequence[int], interpolation: str) -> Tensor:
    """What ``torchvision.transforms.functional.resize`` computes for a tensor."""
    return (
        image
        if list(image.shape[-2:]) == list(size)
        else F.interpolate(image, size, mode="nearest")
    )


@contextmanager
def resizing() -> Iterator[None]:
    """Torchvision's function where it is installed, else PyTorch's of the same meaning."""
    if hasattr(transformer_cosmos, "transforms"):
        yield
        return
    transformer_cosmos.transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=_resize),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    try:
        yield
    finally:
        del transformer_cosmos.transforms
