"""Stops a run whose numbers are not finite, before anything is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rainfusion_trt.errors import NotFiniteError

_CAUSES = (
    "look for NaN in latents, embeddings or weights, for a guidance scale out of range, or for an "
    "overflow of float16 (bfloat16 has none)"
)


def check_latents(latents: Any) -> None:
    """Raise NotFiniteError for latents with NaN or infinity; waits for the device."""
    if torch.is_tensor(latents) and not torch.isfinite(latents).all():
        raise NotFiniteError(f"after the last step the latents are not finite: {_CAUSES}")


def check_audio(audio: Any) -> None:
    """Raise NotFiniteError for sound with NaN or infinity; waits for the device."""
    if torch.is_tensor(audio) and not torch.isfinite(audio).all():
        raise NotFiniteError(
            f"the sound is not finite, the vocoder gave NaN or infinity: {_CAUSES}"
        )


def check_frames(frames: Any) -> None:
    """Raise NotFiniteError for frames (or latents) with NaN or infinity; images have none."""
    clips = frames if isinstance(frames, (list, tuple)) else [frames]
    for clip in clips:
        if torch.is_tensor(clip):
            finite = not clip.is_floating_point() or bool(torch.isfinite(clip).all())
        elif isinstance(clip, np.ndarray) and clip.dtype.kind == "f":
            finite = bool(np.isfinite(clip).all())
        else:
            continue
        if not finite:
            raise NotFiniteError(
                f"the frames are not finite, the VAE gave NaN or infinity: {_CAUSES}"
            )
