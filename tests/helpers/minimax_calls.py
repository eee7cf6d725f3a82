"""Calls of MiniMax-H3 as diffusers' blocks pack and make them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.modular_pipelines.minimax_h3.before_denoise import (
    MiniMaxH3PrepareLayoutStep,
    MiniMaxH3Ref2VAPrepareLayoutStep,
    MiniMaxH3SetTimestepsStep,
)

Grid = tuple[int, int, int]

GRID: Grid = (7, 6, 10)  # of the generated clip
AUDIO_LATENTS = 19  # of its sound, for each of two channels
AUDIO, VIDEO = 2, 0  # tags


def packed(task: str, grid: Grid = GRID) -> tuple:
    """What diffusers' layout step of a task gives: rows, indices and conditioning rows."""
    tags = torch.ones(30, dtype=torch.long)
    if task != "text":
        tags[10:20] = VIDEO  # a picture that the text encoder saw
    target = {
        "num_latent_frames": grid[0],
        "latent_height": 2 * grid[1],
        "latent_width": 2 * grid[2],
        "num_audio_latents": AUDIO_LATENTS,
        "patch_size": (1, 2, 2),
        "audio_channels": 2,
        "audio_tag": AUDIO,
        "video_tag": VIDEO,
    }
    if task in ("text", "keyframes"):
        anchors = ("first", "last") if task == "keyframes" else ()
        build = MiniMaxH3PrepareLayoutStep.build_packed_sequence
        return build(tags, **target, keyframe_anchors=anchors)
    references = [
        SimpleNamespace(kind="image", has_audio=False),
        SimpleNamespace(kind="video", has_audio=True),
        SimpleNamespace(kind="audio", has_audio=True),
    ]
    latents = [torch.zeros(1, 24, 1, 8, 4), torch.zeros(1, 24, 5, 4, 6)]
    sounds = [torch.zeros(8, 8), torch.zeros(12, 8)]
    build = MiniMaxH3Ref2VAPrepareLayoutStep.build_ref2va_packed_sequence
    return build(tags, references, latents, sounds, **target)


def call_of(task: str, *, batch: int = 1, seed: int = 0, grid: Grid = GRID) -> dict[str, Any]:
    """A forward as the denoising block makes it."""
    places, tags, video, audio, text, known_video, known_audio = packed(task, grid)
    timestep, rows = MiniMaxH3SetTimestepsStep.build_row_timesteps(
        video, audio, known_video, known_audio, len(text), 0.3, 0.6, 0.999, 1.0
    )
    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: int, channels: int) -> torch.Tensor:
        return torch.randn(batch, rows, channels, generator=generator)

    return {
        "hidden_states": drawn(len(video), 96),
        "audio_hidden_states": drawn(len(audio), 8),
        "encoder_hidden_states": drawn(len(text), 32),
        "timestep": timestep,
        "timestep_indices": rows,
        "token_tags": tags,
        "position_ids": places,
        "video_indices": video,
        "audio_indices": audio,
        "text_indices": text,
        "attention_kwargs": None,
    }
