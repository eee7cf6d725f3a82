"""Videos of the trained demo model from pure noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.models.base import VideoSize


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


def decode_video(latents: Tensor, codec: PatchCodec) -> np.ndarray:
    """Pixels uint8 [F, H, W, 3] of latents [T, C, h, w]."""
    (videos,) = codec.decode(latents.transpose(0, 1)[None], return_dict=False)
    video = videos[0].float().clamp(-1, 1)
    pixels = ((video + 1.0) * 127.5).round().to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).cpu().numpy()


def psnr(error: float) -> float:
    """PSNR in dB for a mean squared error of pixels in [-1, 1], whose peak-to-peak is 2."""
    return math.inf if error == 0 else 10.0 * math.log10(4.0 / error)
