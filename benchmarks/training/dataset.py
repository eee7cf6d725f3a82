"""The training set: latents of single frames, so that windows can start at any frame.

The codec is linear, so averaging four frames commutes with it: a sixth of the pixels' size is
stored, and every crop and time offset is still at hand. One safetensors file holds clips and codec.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rainfusion_trt.demo.codec import PATCH, PatchCodec, pool_frames, to_float
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize

_FORMAT = "rainfusion-demo-clips-1"


@dataclass(frozen=True)
class Window:
    """Place of a training sample in a clip; rows and columns count latents."""

    clip: str
    frame: int
    row: int
    column: int


class LatentClips:
    """Latents of whole clips and the codec that made them.

    Parameters
    ----------
    codec : PatchCodec
        Codec of the latents.
    clips : mapping of str to Tensor
        By name, float16 [F, C, h, w], one latent per pixel frame.
    """

    def __init__(self, codec: PatchCodec, clips: Mapping[str, Tensor]) -> None:
        self.codec = codec
        self.clips = dict(clips)
        self.names = sorted(self.clips)

    @classmethod
    def encode(cls, codec: PatchCodec, clips: Mapping[str, Tensor]) -> LatentClips:
        """From pixels, uint8 [F, 3, H, W] each."""
        latents = {
            name: torch.cat([codec.encode_frames(to_float(part)).half() for part in clip.split(32)])
            for name, clip in clips.items()
        }
        return cls(codec, latents)

    def save(self, path: Path) -> Path:
        """Write everything as one safetensors file, which appears when it is complete."""
        tensors = {f"clip.{name}": clip.contiguous() for name, clip in self.clips.items()}
        tensors |= {f"codec.{name}": value for name, value in self.codec.state_dict().items()}
        config = json.dumps({"latent_channels": self.codec.config.latent_channels})
        save_whole(tensors, path, {"format": _FORMAT, "codec": config})
        return path

    @classmethod
    def load(cls, path: Path) -> LatentClips:
        """Read what `save` wrote.

        Raises
        ------
        InvalidInputError
            No such file, or another kind of file.
        """
        remedy = "write it with scripts/train_demo.py prepare"
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"data {path} cannot be read ({error}); {remedy}") from error
        if metadata.get("format") != _FORMAT:
            raise InvalidInputError(
                f"data {path} has format {metadata.get('format')!r}, expected {_FORMAT!r}; {remedy}"
            )
        codec = PatchCodec(**json.loads(metadata["codec"]))
        codec.load_state_dict(_part(tensors, "codec."))
        return cls(codec.eval(), _part(tensors, "clip."))

    def check(self, size: VideoSize) -> None:
        """Raise unless every clip has a window of this size."""
        rows, columns = size.height // PATCH, size.width // PATCH
        for name, clip in self.clips.items():
            have = (clip.shape[0], clip.shape[2], clip.shape[3])
            if any(a < b for a, b in zip(have, (size.frames, rows, columns), strict=True)):
                raise InvalidInputError(
                    f"clip {name!r} has {have[0]} frames of {have[1] * PATCH} x {have[2] * PATCH} "
                    f"pixels, too few for {size}; prepare the data anew with a larger size"
                )

    def windows(self, size: VideoSize) -> Iterator[Window]:
        """Every window there is."""
        for name in self.names:
            frames, rows, columns = self._places(name, size)
            for frame in range(frames):
                for row in range(rows):
                    for column in range(columns):
                        yield Window(name, frame, row, column)

    def draw(self, size: VideoSize, generator: torch.Generator) -> Window:
        """A random window: each clip as likely as the others, then each place in it."""

        def below(limit: int) -> int:
            return int(torch.randint(limit, (), generator=generator))

        name = self.names[below(len(self.names))]
        return Window(name, *(below(limit) for limit in self._places(name, size)))

    def cut(self, window: Window, size: VideoSize) -> Tensor:
        """Latents of a window as the transformer takes them, float32 [T, C, h, w]."""
        part = self.clips[window.clip][
            window.frame : window.frame + size.frames,
            :,
            window.row : window.row + size.height // PATCH,
            window.column : window.column + size.width // PATCH,
        ]
        return pool_frames(part.float()[None])[0]

    def to(self, device: torch.device) -> LatentClips:
        """The same with clips and codec on a device."""
        self.codec.to(device)
        return LatentClips(self.codec, {name: clip.to(device) for name, clip in self.clips.items()})

    def _places(self, name: str, size: VideoSize) -> tuple[int, int, int]:
        frames, _, rows, columns = self.clips[name].shape
        return (
            frames - size.frames + 1,
            rows - size.height // PATCH + 1,
            columns - size.width // PATCH + 1,
        )


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file under another name and rename it when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    try:
        save_file(tensors, temporary, metadata=metadata)
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
