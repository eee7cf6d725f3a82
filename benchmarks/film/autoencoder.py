"""TAEF2, a tiny autoencoder of the FLUX.2 latent space, as two functions on its tensors.

Pictures [F, 3, H, W] in [0, 1] become latents [F, 32, H/8, W/8] and back. The tensor names are
those of the published files (``taef2_encoder`` and ``taef2_decoder``; MIT, madebyollin/taesd).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Autoencoder:
    """The tensors of both halves, in float32."""

    encoder: Tensors
    decoder: Tensors

    def encode(self, pictures: Tensor) -> Tensor:
        """Latents of pictures; a convolution without bias halves the resolution."""
        x = pictures
        for layer in _layers(self.encoder):
            if f"{layer}.conv.0.weight" in self.encoder:
                x = _residual(self.encoder, layer, x)
            else:
                halves = f"{layer}.bias" not in self.encoder
                x = _convolve(self.encoder, layer, x, stride=2 if halves else 1)
        return x

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of latents; a convolution without bias follows a doubled resolution."""
        x = torch.tanh(latents / 3) * 3
        layers = _layers(self.decoder)
        for layer in layers:
            if f"{layer}.conv.0.weight" in self.decoder:
                x = _residual(self.decoder, layer, x)
                continue
            if f"{layer}.bias" not in self.decoder:
                x = F.interpolate(x, scale_factor=2, mode="nearest")
            x = _convolve(self.decoder, layer, x)
            if layer == layers[0]:
                x = x.relu()
        return x.clamp(0, 1)


def load_autoencoder(folder: Path, device: torch.device) -> Autoencoder:
    """Read both halves from wherever they lie below a folder."""
    halves = []
    for half in ("encoder", "decoder"):
        path = next(iter(sorted(folder.rglob(f"taef2_{half}.safetensors"))), None)
        if path is None:
            raise FileNotFoundError(f"no taef2_{half}.safetensors below {folder}")
        tensors = load_file(path, device=str(device))
        halves.append({name: tensor.float() for name, tensor in tensors.items()})
    return Autoencoder(*halves)


def _layers(tensors: Tensors) -> list[str]:
    return [str(i) for i in sorted({int(name.split(".")[0]) for name in tensors})]


def _convolve(tensors: Tensors, name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = tensors[f"{name}.weight"]
    bias = tensors.get(f"{name}.bias")
    return F.conv2d(x, weight, bias, stride=stride, padding=weight.shape[-1] // 2)


def _residual(tensors: Tensors, name: str, x: Tensor) -> Tensor:
    """Three convolutions beside the identity, after what the whole picture has in common."""
    if f"{name}.pool.0.weight" in tensors:
        scale, shift = tensors[f"{name}.pool.1.weight"], tensors[f"{name}.pool.1.bias"]
        shared = F.group_norm(_convolve(tensors, f"{name}.pool.0", x), 4, scale, shift)
        x = x + _convolve(tensors, f"{name}.pool.3", shared.relu())
    y = x
    for step in (0, 2):
        y = _convolve(tensors, f"{name}.conv.{step}", y).relu()
    return (_convolve(tensors, f"{name}.conv.4", y) + x).relu()
