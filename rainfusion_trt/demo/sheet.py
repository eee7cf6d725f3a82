"""One picture of several videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.seal import Seal
from rainfusion_trt.files.staging import staging

_SEAL = Seal(b"rainfusion-trt picture 1\n")  # readers of JPEG stop before it, at the end's marker
COLUMNS = 5  # frames of a video, evenly spaced from the first to the last


def check_sheet(path: Path) -> None:
    """Refuse a picture that cannot be written, or would replace one of other origin."""
    check_file(path, ours=_SEAL.is_on)


def write_sheet(videos: Sequence[np.ndarray], path: Path) -> Path:
    """Write a JPEG with a row of frames, at half size, for each video.

    Parameters
    ----------
    videos
        uint8 [F, H, W, 3], all of one size.
    path
        Replaced at once, never half written, if it is as an earlier call has written it.
    """
    from PIL import Image

    rows = []
    for video in videos:
        places = np.linspace(0, len(video) - 1, COLUMNS).round().astype(int)
        rows.append(np.concatenate([video[place] for place in places], axis=1))
    whole = Image.fromarray(np.concatenate(rows, axis=0))
    with staging(path) as stage:
        part = stage.new / path.name
        whole.reduce(2).save(part, "JPEG", quality=85)
        _SEAL.put_on(part)
        check_sheet(path)
        stage.publish()
    return path
