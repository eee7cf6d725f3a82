"""One picture of several videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

COLUMNS = 5  # frames of a video, evenly spaced from the first to the last


def write_sheet(videos: Sequence[np.ndarray], path: Path) -> Path:
    """Write a JPEG with a row of frames, at half size, for each video.

    Parameters
    ----------
    videos
        uint8 [F, H, W, 3], all of one size.
    path
        Replaced at once, never half written.
    """
    from PIL import Image

    rows = []
    for video in videos:
        places = np.linspace(0, len(video) - 1, COLUMNS).round().astype(int)
        rows.append(np.concatenate([video[place] for place in places], axis=1))
    whole = Image.fromarray(np.concatenate(rows, axis=0))
    part = path.with_name(f"{path.name}.part")
    whole.reduce(2).save(part, "JPEG", quality=85)
    return part.replace(path)
