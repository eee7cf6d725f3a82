"""A picture of what the model draws from noise."""

from __future__ import annotations

from pathlib import Path

import cv2
import torch
from torch import Tensor, nn

from benchmarks.film.autoencoder import Autoencoder
from benchmarks.film.latents import Latents
from benchmarks.film.model import CHANNELS, Rotary, velocity
from benchmarks.film.scene import Scene


@torch.no_grad()
def draw(
    model: nn.Module, scene: Scene, rotary: Rotary, text: Tensor, steps: int, seed: int
) -> Tensor:
    """Normalised latents [T, 32, h, w] from noise by Euler steps."""
    frames, height, width = scene.grid
    dtype = next(model.parameters()).dtype
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, frames, CHANNELS, 2 * height, 2 * width, generator=generator)
    x = x.to(text.device)
    times = torch.linspace(1, 0, steps + 1, device=text.device)
    for now, then in zip(times[:-1], times[1:], strict=True):
        x = (
            x
            + (then - now)
            * velocity(model, x.to(dtype), now[None], text[None].to(dtype), rotary).float()
        )
    return x[0]


def write_strip(path: Path, autoencoder: Autoencoder, latents: Latents, drawn: Tensor) -> None:
    """Four frames, side by side, as PNG."""
    last = len(drawn) - 1
    chosen = drawn[[0, last // 3, 2 * last // 3, last]]
    with torch.no_grad():
        pictures = autoencoder.decode(latents.restore(chosen))
    strip = torch.cat(list(pictures), -1).permute(1, 2, 0)
    pixels = (strip * 255).round().byte().cpu().numpy()
    if not cv2.imwrite(str(path), pixels[..., ::-1]):
        raise OSError(f"cannot write {path}")
