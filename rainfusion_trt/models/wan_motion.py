"""The motion encoder of Wan 2.2 Animate in operators that a graph can hold.

Its weights have unit variance and are scaled in every call; here the values are, by the same
factor, so that weights stay plain constants of the graph.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BASIS = "_rainfusion_basis"


def draw_motion_weights(encoder: Any) -> None:
    """Give seeded random weights of variance 1 / fan-in the unit variance that they are used by."""
    with torch.no_grad():
        for module in encoder.modules():
            weight = getattr(module, "weight", None)
            if weight is not None:
                weight.div_(module.scale)


def bake_basis(encoder: Any) -> None:
    """Keep the orthonormal basis of motion, float32 [motion_dim, out], as a buffer."""
    weight = encoder.motion_synthesis_weight.detach() + 1e-8
    basis = torch.linalg.qr(weight.float())[0].T.contiguous()
    encoder.register_buffer(_BASIS, basis, persistent=False)


def motion_vectors(encoder: Any, faces: Tensor) -> Tensor:
    """What the encoder gives for faces [N, 3, size, size]: [N, out]."""
    values = _convolved(encoder.conv_in, faces)
    for block in encoder.res_blocks:
        main = _convolved(block.conv2, _convolved(block.conv1, values))
        values = (main + _convolved(block.conv_skip, values)) / math.sqrt(2)
    values = _convolved(encoder.conv_out, values).flatten(1)
    for layer in encoder.motion_network:
        values = F.linear(values * layer.scale, layer.weight, layer.bias)
    return (values.float() @ getattr(encoder, _BASIS)).type_as(values)


def _convolved(layer: Any, images: Tensor) -> Tensor:
    """One ``MotionConv2d``: blur, convolution, activation."""
    if layer.blur:
        images = _blurred(images, layer.blur_kernel, layer.blur_padding)
    images = images.to(layer.weight.dtype) * layer.scale
    images = F.conv2d(images, layer.weight, layer.bias, stride=layer.stride, padding=layer.padding)
    return layer.act_fn(images) if layer.use_activation else images


def _blurred(images: Tensor, kernel: Tensor, padding: tuple[int, int]) -> Tensor:
    """Every channel convolved with one kernel [k, k]."""
    channels = images.shape[1]
    kernels = kernel.to(images.dtype)[None, None].expand(channels, 1, -1, -1)
    return F.conv2d(images, kernels, padding=padding, groups=channels)
