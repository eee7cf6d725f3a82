"""Videos of the trained demo model from pure noise, and how near they come to the clips."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.dataset import LatentClips, Window
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize


@dataclass(frozen=True)
class Nearest:
    """The training window closest to a sample.

    PSNRs are in dB, of pixels against the window as the codec gives it, before clipping.

    Attributes
    ----------
    window : Window
        Where it is.
    psnr : float
        Of the sample.
    mean_psnr : float
        Of the mean colour patch everywhere, which knows nothing of the clip: dark or flat windows
        are near to anything, so a sample has to beat this.
    """

    window: Window
    psnr: float
    mean_psnr: float


def sample_latents(
    pipe: Any, prompt: str, size: VideoSize, *, steps: int, seed: int, guidance: float = 1.0
) -> Tensor:
    """Denoise seeded noise with the pipeline; latents [T, C, h, w], in the pipeline's dtype."""
    result = pipe(
        prompt,
        num_frames=size.frames,
        height=size.height,
        width=size.width,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(seed),
        max_sequence_length=pipe.transformer.config.max_text_seq_length,
        output_type="latent",
    )
    return result.frames[0]


def nearest_window(
    latents: Tensor, data: LatentClips, size: VideoSize, *, clip: str | None = None
) -> Nearest:
    """Search every window of every clip, or of one; latents [T, C, h, w] on the data's device."""
    wanted = latents.float()
    candidates = [window for window in data.windows(size) if clip in (None, window.clip)]
    if not candidates:
        raise InvalidInputError(f"no windows of clip {clip!r}: the clips are {data.names}")
    errors = [data.codec.pixel_error(wanted - data.cut(each, size)) for each in candidates]
    lowest, index = torch.stack(errors).cpu().min(0)  # the one transfer from the device
    if not lowest.isfinite():
        raise InvalidInputError("the sample holds values that are not numbers: train with less lr")
    best, window = lowest.item(), candidates[int(index)]
    # The mean patch is what the codec makes of zeros.
    return Nearest(window, psnr(best), psnr(data.codec.pixel_error(data.cut(window, size)).item()))


def decode_video(latents: Tensor, codec: PatchCodec) -> np.ndarray:
    """Pixels uint8 [F, H, W, 3] of latents [T, C, h, w]."""
    video = codec.decode(latents.transpose(0, 1)[None]).sample[0].float().clamp(-1, 1)
    pixels = ((video + 1.0) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu().numpy()


def psnr(error: float) -> float:
    """Of a mean squared error of pixels in [-1, 1], whose peak-to-peak is 2."""
    return math.inf if error == 0 else 10.0 * math.log10(4.0 / error)
