"""Latents of all frames on every process, each having encoded its share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.film.autoencoder import Autoencoder


@dataclass(frozen=True)
class Latents:
    """Latents [F, 32, h, w] in float16, and what brings them to mean 0 and deviation 1."""

    values: Tensor
    mean: float
    deviation: float

    def sequence(self, start: int, frames: int) -> Tensor:
        """Normalised latents of some frames, float32."""
        return (self.values[start : start + frames].float() - self.mean) / self.deviation

    def restore(self, normalised: Tensor) -> Tensor:
        """Latents as the autoencoder knows them."""
        return normalised * self.deviation + self.mean


@torch.no_grad()
def encode_share(
    autoencoder: Autoencoder, pictures: np.ndarray, device: torch.device, batch: int = 16
) -> Tensor:
    """Latents of one process's pictures, float16."""
    parts = []
    for begin in range(0, len(pictures), batch):
        chunk = torch.from_numpy(np.ascontiguousarray(pictures[begin : begin + batch]))
        images = chunk.to(device).permute(0, 3, 1, 2).float() / 255
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
            parts.append(autoencoder.encode(images).half())
    return torch.cat(parts)


def gather_frames(share: Tensor, frames: int) -> Tensor:
    """All frames in order; process r holds frames r, r + world, r + 2 world, ..."""
    world = dist.get_world_size()
    longest = -(-frames // world)
    padded = share.new_zeros(longest, *share.shape[1:])
    padded[: len(share)] = share
    shares = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(shares, padded)
    return torch.stack(shares, 1).flatten(0, 1)[:frames].contiguous()


def make_latents(
    autoencoder: Autoencoder, pictures: np.ndarray, frames: int, device: torch.device
) -> Latents:
    """Encode a share, exchange all shares, measure mean and deviation."""
    values = gather_frames(encode_share(autoencoder, pictures, device), frames)
    sample = values[:: max(1, frames // 500)].float()
    return Latents(values, float(sample.mean()), float(sample.std()))
