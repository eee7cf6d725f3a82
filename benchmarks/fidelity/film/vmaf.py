"""VMAF of the videos that were written without loss, here on the CPU.

    python -m benchmarks.fidelity.film.vmaf FOLDER [--results benchmarks/results/fidelity]

``FOLDER`` holds what ``benchmarks.fidelity.film videos`` kept: ``lossless_*.json`` and the videos.
Needs imageio-ffmpeg, whose ffmpeg has libvmaf.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fidelity.film.lossless import RATE, read_video
from benchmarks.record import RESULTS, write_result

MODEL = "vmaf_v0.6.1"


@dataclass(frozen=True)
class Ffmpeg:
    """The ffmpeg of imageio-ffmpeg."""

    path: str
    version: str

    @classmethod
    def find(cls) -> Ffmpeg:
        """Refuse before any work what cannot measure."""
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise SystemExit("VMAF needs ffmpeg: pip install imageio-ffmpeg") from error
        path = imageio_ffmpeg.get_ffmpeg_exe()
        filters = subprocess.run(
            [path, "-hide_banner", "-filters"], capture_output=True, text=True, check=True
        ).stdout
        if " libvmaf " not in filters:
            raise SystemExit(f"{path} has no filter libvmaf: use the one of imageio-ffmpeg")
        return cls(path, imageio_ffmpeg.get_ffmpeg_version())

    def vmaf(self, reference: np.ndarray, video: np.ndarray) -> float:
        """Mean over the frames of uint8 RGB [F, H, W, 3], enlarged to the model's 1080 rows."""
        size = f"{video.shape[2]}x{video.shape[1]}"
        source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(RATE)]
        scaled = "scale=-2:1080:flags=bicubic,format=yuv420p"
        with tempfile.TemporaryDirectory() as folder:
            for name, frames in (("reference", reference), ("video", video)):
                Path(folder, name).write_bytes(np.ascontiguousarray(frames).tobytes())
            graph = (
                f"[0:v]{scaled}[a];[1:v]{scaled}[b];"
                f"[a][b]libvmaf=model=version={MODEL}:log_fmt=json:log_path=vmaf.json"
            )
            command = [self.path, "-v", "error", *source, "-i", "video", *source, "-i", "reference"]
            subprocess.run([*command, "-lavfi", graph, "-f", "null", "-"], cwd=folder, check=True)
            log = json.loads(Path(folder, "vmaf.json").read_text())
        if len(log["frames"]) != len(video):
            raise RuntimeError(f"VMAF saw {len(log['frames'])} of {len(video)} frames")
        return float(log["pooled_metrics"]["vmaf"]["mean"])


def pairs(folder: Path) -> Iterator[tuple[dict[str, Any], np.ndarray, np.ndarray]]:
    """Labels of each sparse video, the dense video of the same item, and the video."""
    paths = sorted(folder.glob("*lossless_*.json"))
    if not paths:
        raise SystemExit(f"no lossless_*.json in {folder}: run benchmarks.fidelity.film videos")
    for path in paths:
        index = json.loads(path.read_text(encoding="utf-8"))
        dense = {(e["task"], e["item"]): e for e in index if e["rule"] == "dense"}
        for entry in index:
            if entry["rule"] != "dense":
                reference = read_video(folder, dense[entry["task"], entry["item"]])
                yield entry, reference, read_video(folder, entry)


def main() -> None:
    """Write ``vmaf.json``: every pair, and the dense videos against themselves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--results", type=Path, default=RESULTS / "fidelity")
    options = parser.parse_args()
    ffmpeg = Ffmpeg.find()
    rows: dict[tuple[str, str, float], dict[str, Any]] = {}
    same: dict[tuple[str, int], float] = {}
    for entry, reference, video in pairs(options.folder):
        key = entry["task"], entry["rule"], entry["sparsity"]
        names = dict(zip(("task", "rule", "sparsity"), key, strict=True))
        row = rows.setdefault(key, {**names, "items": [], "vmaf": []})
        row["items"].append(entry["item"])
        row["vmaf"].append(round(ffmpeg.vmaf(reference, video), 3))
        case = entry["task"], entry["item"]
        if case not in same:
            same[case] = ffmpeg.vmaf(reference, reference)
    write_result(
        "vmaf",
        rows.values(),
        note=f"{MODEL} by ffmpeg {ffmpeg.version}, sparse against dense videos enlarged to 1080 "
        f"rows; dense against itself {min(same.values()):.1f} to {max(same.values()):.1f}",
        folder=options.results,
    )


if __name__ == "__main__":
    main()
