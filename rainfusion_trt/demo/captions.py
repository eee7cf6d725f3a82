"""A line of text over a clip."""

from __future__ import annotations

from typing import Any

import numpy as np

from rainfusion_trt.video import to_uint8

STRIP = 24  # pixels; even, as video encoders need
_FONT = 14


def captioned(frames: Any, text: str) -> np.ndarray:
    """A clip with white text on a black strip above it.

    Parameters
    ----------
    frames
        One clip, see `rainfusion_trt.video.to_uint8`; [T, H, W, 3].
    text : str
        One line; what does not fit the width is cut off.

    Returns
    -------
    numpy.ndarray
        uint8 [T, H + STRIP, W, 3].
    """
    from PIL import Image, ImageDraw, ImageFont

    clip = to_uint8(frames)
    strip = Image.new("RGB", (clip.shape[2], STRIP))
    place, font = (STRIP // 4, STRIP // 2), ImageFont.load_default(_FONT)
    ImageDraw.Draw(strip).text(place, text, fill="white", font=font, anchor="lm")
    row = np.asarray(strip)
    return np.concatenate([np.broadcast_to(row, (len(clip), *row.shape)), clip], axis=1)
