"""Clips of coloured noise and an autoencoder of random tensors, for tests."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

COLOURS = [(200, 40, 40), (40, 200, 40), (40, 40, 200), (190, 190, 30), (30, 190, 190)]
LENGTHS = [9, 12, 7, 10, 8]


def write_clip(path, rate=8):
    """Shots of one colour each, with noise."""
    generator = np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), rate, (96, 64))
    for colour, length in zip(COLOURS, LENGTHS, strict=True):
        noise = generator.integers(-15, 15, (64, 96, 3))
        for _ in range(length):
            writer.write(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8))
    writer.release()


def write_autoencoder(folder):
    """TAEF2's kinds of layers, eight channels wide."""
    generator = torch.Generator().manual_seed(0)

    def conv(out, into, size=3):
        return torch.randn(out, into, size, size, generator=generator) / (into * size * size) ** 0.5

    def residual(name):
        tensors = {}
        for step in (0, 2, 4):
            tensors[f"{name}.conv.{step}.weight"] = conv(8, 8)
            tensors[f"{name}.conv.{step}.bias"] = torch.zeros(8)
        return tensors

    def pooled(name):
        return residual(name) | {
            f"{name}.pool.0.weight": conv(32, 8, 1),
            f"{name}.pool.1.weight": torch.ones(32),
            f"{name}.pool.1.bias": torch.zeros(32),
            f"{name}.pool.3.weight": conv(8, 32, 1),
        }

    encoder = {"0.weight": conv(8, 3), "0.bias": torch.zeros(8)} | residual("1")
    for i in (2, 3, 4):
        encoder[f"{i}.weight"] = conv(8, 8)
    encoder |= pooled("5") | {"6.weight": conv(32, 8), "6.bias": torch.zeros(32)}
    decoder = {"1.weight": conv(8, 32), "1.bias": torch.zeros(8)} | pooled("3")
    for i in (5, 6, 7):
        decoder[f"{i}.weight"] = conv(8, 8)
    decoder |= {"8.weight": conv(3, 8), "8.bias": torch.zeros(3)}
    save_file(encoder, folder / "taef2_encoder.safetensors")
    save_file(decoder, folder / "taef2_decoder.safetensors")
