"""Find the part of the clips that a sample of the demo model is nearest to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.training.dataset import LatentClips, Window
from rainfusion_trt.demo.sampling import psnr
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize


@dataclass(frozen=True)
class Nearest:
    """The training window closest to a sample.

    PSNRs are in dB, of pixels against the window as the codec gives it, before clipping.

    Attributes
    ----------
    window : Window
        Its place.
    psnr : float
        PSNR of the sample.
    mean_psnr : float
        PSNR of the mean colour patch everywhere, which knows nothing of the clip. Dark or flat
        windows are near to anything, so a sample has to beat this.
    """

    window: Window
    psnr: float
    mean_psnr: float


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
