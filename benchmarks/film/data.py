"""Frames of film clips, cut into shots, and shots split into training and held-out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi")
RATE = 8.0  # frames a second


@dataclass(frozen=True)
class Shot:
    """Frames ``start`` to ``stop - 1`` of all clips one after the other."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Film:
    """The share of all clips that one process holds.

    Attributes
    ----------
    pictures
        Per size: every ``world``-th frame of all clips as uint8 RGB, from frame ``rank`` on.
    frames
        Number of all frames.
    shots
        All shots, in order; they cover all frames.
    """

    pictures: list[np.ndarray]
    frames: int
    shots: list[Shot]


def clip_paths(folder: Path) -> list[Path]:
    """Every clip below a folder, by name."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"no clip ({', '.join(SUFFIXES)}) below {folder}")
    return paths


def read_clip(path: Path, rate: float = RATE) -> Iterator[np.ndarray]:
    """BGR frames of a clip, thinned to about ``rate`` a second."""
    capture = cv2.VideoCapture(str(path))
    if not capture.isOpened():
        raise OSError(f"cannot open {path}")
    step = max(1, round((capture.get(cv2.CAP_PROP_FPS) or rate) / rate))
    index = 0
    while capture.grab():
        if index % step == 0:
            good, frame = capture.retrieve()
            if not good:
                break
            yield frame
        index += 1
    capture.release()


def fit(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a frame, scaled so that it just covers (height, width)."""
    scale = max(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (max(n, math.ceil(m * scale)) for n, m in zip(size, frame.shape, strict=False))
    scaled = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return scaled[top : top + size[0], left : left + size[1]]


def histogram(frame: np.ndarray) -> np.ndarray:
    """Shares of 8 x 8 x 8 colours in a small copy of a frame."""
    small = cv2.resize(frame, (96, 54), interpolation=cv2.INTER_AREA)
    counts = cv2.calcHist([small], [0, 1, 2], None, [8] * 3, [0, 256] * 3).ravel()
    return counts / counts.sum()


def find_cuts(histograms: np.ndarray, least: float = 0.3, factor: float = 3.0) -> list[int]:
    """Frames that begin a shot, without the first one.

    A cut is where the share of colours that changes exceeds ``least`` and is ``factor`` times
    the median of the six changes before and the six after it (so fast motion is no cut).
    """
    change = 0.5 * np.abs(np.diff(histograms, axis=0)).sum(1)
    cuts = []
    for i, value in enumerate(change):
        around = np.concatenate([change[max(0, i - 6) : i], change[i + 1 : i + 7]])
        usual = np.median(around) if len(around) else 0.0
        if value > least and value > factor * usual:
            cuts.append(i + 1)
    return cuts


def shots_of(cuts: Sequence[int], frames: int, offset: int = 0) -> list[Shot]:
    """The shots of a clip of ``frames`` frames that begins at frame ``offset`` of all."""
    edges = [0, *cuts, frames]
    return [
        Shot(a + offset, b + offset) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a
    ]


def load_film(
    folder: Path,
    sizes: Sequence[tuple[int, int]],
    rank: int = 0,
    world: int = 1,
    limit: int | None = None,
) -> Film:
    """Read all clips below a folder: shots of all frames, pictures of this process's share.

    Parameters
    ----------
    sizes
        Heights and widths that pictures are scaled to.
    limit
        Most frames of one clip.
    """
    pictures: list[list[np.ndarray]] = [[] for _ in sizes]
    shots: list[Shot] = []
    total = 0
    for path in clip_paths(folder):
        bars: list[np.ndarray] = []
        for frame in read_clip(path):
            if limit is not None and len(bars) >= limit:
                break
            if (total + len(bars)) % world == rank:
                for kept, size in zip(pictures, sizes, strict=True):
                    kept.append(fit(frame, size)[..., ::-1])
            bars.append(histogram(frame))
        if not bars:
            raise OSError(f"{path} has no frame")
        shots += shots_of(find_cuts(np.stack(bars)), len(bars), total)
        total += len(bars)
    stacks = [
        np.stack(kept) if kept else np.zeros((0, *size, 3), np.uint8)
        for kept, size in zip(pictures, sizes, strict=True)
    ]
    return Film(stacks, total, shots)


def split_shots(
    shots: Sequence[Shot], frames: int, every: int = 7
) -> tuple[list[Shot], list[Shot]]:
    """Shots of at least ``frames`` frames: those to train on, and each ``every``-th, held out."""
    usable = [shot for shot in shots if len(shot) >= frames]
    held = usable[every // 2 :: every]
    if not held or len(held) == len(usable):
        raise ValueError(f"{len(usable)} shots of {frames} frames cannot be split by {every}")
    chosen = set(held)
    return [shot for shot in usable if shot not in chosen], held
