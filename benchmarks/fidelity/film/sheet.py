"""Frames of dense and sparse videos, one below the other, of those that were written without loss.

    python -m benchmarks.fidelity.film.sheet FOLDER --output docs/images/film-restored.jpg

``FOLDER`` is that of :mod:`benchmarks.fidelity.film.vmaf`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from benchmarks.fidelity.film.vmaf import pairs

FRAMES = (4, 12)  # of a video; the first frame is exact in all
WIDTH = 320
LABEL = 22

Videos = Mapping[str, Mapping[tuple[str, int], np.ndarray]]
"""By rule, then by task and item: uint8 RGB frames [F, H, W, 3]."""


def main() -> None:
    """Write the sheet as a JPEG."""
    p = argparse.ArgumentParser(prog="benchmarks.fidelity.film.sheet", description=__doc__)
    p.add_argument("folder", type=Path)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--items", type=int, nargs="*", default=[0], help="of every task")
    p.add_argument("--quality", type=int, default=80, help="of the JPEG")
    options = p.parse_args()
    picture = sheet(read(options.folder, options.items))[..., ::-1]
    quality = [cv2.IMWRITE_JPEG_QUALITY, options.quality]
    if not cv2.imwrite(str(options.output), np.ascontiguousarray(picture), quality):
        raise SystemExit(f"{options.output} cannot be written")


def read(folder: Path, items: list[int]) -> Videos:
    """The videos of some items, dense ones first."""
    videos: dict[str, dict[tuple[str, int], np.ndarray]] = {"dense": {}}
    for entry, dense, video in pairs(folder):
        if entry["item"] in items:
            key = entry["task"], entry["item"]
            videos["dense"][key] = dense
            videos.setdefault(f"{entry['rule']}, s = {entry['sparsity']:g}", {})[key] = video
    if not videos["dense"]:
        raise SystemExit(f"{folder} has no videos of items {items}")
    return videos


def sheet(videos: Videos) -> np.ndarray:
    """uint8 RGB [H, W, 3]: a row for every rule, its videos side by side."""
    keys = sorted(videos["dense"], key=lambda key: (key[1], key[0]))
    rows = []
    for rule, mine in videos.items():
        frames = [small(mine[key][n]) for key in keys for n in FRAMES]
        row = np.concatenate(frames, axis=1)
        rows += [label(rule, row.shape[1]), row]
    return np.concatenate(rows)


def small(frame: np.ndarray) -> np.ndarray:
    """A frame of the sheet's width."""
    height = round(frame.shape[0] * WIDTH / frame.shape[1])
    return cv2.resize(frame, (WIDTH, height), interpolation=cv2.INTER_AREA)


def label(text: str, width: int) -> np.ndarray:
    """A strip with a name on it."""
    strip = np.full((LABEL, width, 3), 255, np.uint8)
    cv2.putText(strip, text, (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


if __name__ == "__main__":
    main()
