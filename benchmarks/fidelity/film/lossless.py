"""Videos written without loss in files small enough to travel, and read again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

RATE = 8
MOST = 11 * 2**20  # bytes after which a new file is begun: a video more must still fit 16 MiB


@dataclass
class Pack:
    """Videos one behind the other in few files, and an index of which is where.

    Attributes
    ----------
    index
        ``NAME.json``: per video the file, its first frame, the number of frames, and its labels.
    """

    folder: Path
    name: str
    index: list[dict[str, Any]] = field(default_factory=list)
    _writer: Any = None
    _file: str = ""
    _frames: int = 0

    def add(self, frames: np.ndarray, **labels: Any) -> None:
        """Append uint8 RGB frames [F, H, W, 3]."""
        if self._writer is None:
            self._open(frames.shape[2], frames.shape[1])
        place = {"file": self._file, "start": self._frames, "frames": len(frames)}
        for frame in frames:
            self._writer.write(np.ascontiguousarray(frame[..., ::-1]))
        self._frames += len(frames)
        self.index.append(place | labels)
        if (self.folder / self._file).stat().st_size > MOST:
            self._close()

    def finish(self) -> Path:
        """Close the last file and write the index."""
        self._close()
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(self.index, indent=1) + "\n")
        return path

    def _open(self, width: int, height: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = len({entry["file"] for entry in self.index})
        self._file = f"{self.name}_{number}.avi"  # Matroska holds up to 5 MB back
        codec = cv2.VideoWriter.fourcc(*"FFV1")
        self._writer = cv2.VideoWriter(str(self.folder / self._file), codec, RATE, (width, height))
        if not self._writer.isOpened():
            raise OSError(f"OpenCV cannot write FFV1 to {self.folder / self._file}")
        self._frames = 0

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None


def read_video(folder: Path, entry: dict[str, Any]) -> np.ndarray:
    """uint8 RGB frames of an entry of an index."""
    capture = cv2.VideoCapture(str(folder / entry["file"]))
    frames = []
    for i in range(entry["start"] + entry["frames"]):
        good, frame = capture.read()
        if not good:
            raise OSError(f"{entry['file']} ends before frame {i}")
        if i >= entry["start"]:
            frames.append(frame[..., ::-1])
    capture.release()
    return np.stack(frames)
