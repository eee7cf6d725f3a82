"""What the command line asks for, checked before any work and made into a transformer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export.lora import fuse_loras
from rainfusion_trt.export.lora_file import LoraFile
from rainfusion_trt.export.weightless import fake_transformer
from rainfusion_trt.models import VideoModel, VideoSize

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class WeightRequest:
    """Where the weights come from: a checkpoint, a seed, or nowhere.

    Raises
    ------
    InvalidInputError
        Not exactly one source, or options that do not go with it.
    """

    checkpoint: str | None
    loras: tuple[LoraFile, ...]
    random_weights: bool
    no_weights: bool
    config: Literal["full", "tiny"]
    layers: int | None
    seed: int
    device: str
    component: str | None = None

    def __post_init__(self) -> None:
        check_device(self.device)
        given = (self.checkpoint is not None) + self.random_weights + self.no_weights
        if given == 0:
            raise InvalidInputError(
                "give the weights: --checkpoint <directory of a diffusers pipeline or hub id>; or "
                "--random-weights for a model to test and time, or --no-weights for the graph alone"
            )
        if given > 1:
            raise InvalidInputError("--checkpoint, --random-weights, --no-weights: give one only")
        if self.checkpoint is not None and (self.layers is not None or self.config != "full"):
            raise InvalidInputError("--layers and --config need --random-weights or --no-weights")
        if self.loras and self.no_weights:
            raise InvalidInputError(
                "--lora adds to weights; with --no-weights there are none, and the graph is the "
                "same with and without it"
            )

    def transformer(self, model: VideoModel, dtype: torch.dtype) -> nn.Module:
        """The transformer with these weights."""
        transformer = self._without_loras(model, dtype)
        fuse_loras(model, transformer, self.loras)
        return transformer

    def _without_loras(self, model: VideoModel, dtype: torch.dtype) -> nn.Module:
        if self.checkpoint is not None:
            component = model.component(self.component)
            return model.load(self.checkpoint, dtype=dtype, component=component).to(self.device)
        arguments = model.config(self.config, layers=self.layers)
        if self.no_weights:
            return fake_transformer(model, arguments, dtype=dtype)
        return model.create(arguments, dtype=dtype, device=self.device, seed=self.seed)

    def size(
        self, model: VideoModel, frames: int | None, height: int | None, width: int | None
    ) -> VideoSize:
        """The clip asked for; what is left out is as this configuration has it."""
        default = model.defaults.size if self.config == "full" else model.tiny_size
        return VideoSize(frames or default.frames, height or default.height, width or default.width)


def lora_files(texts: Iterable[str] | None) -> tuple[LoraFile, ...]:
    """Every ``FILE_OR_DIR[:SCALE]``; raises InvalidInputError where there is none."""
    return tuple(LoraFile.parse(text) for text in texts or ())


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    if device not in ("cpu", "cuda"):
        raise InvalidInputError(f"device {device!r} is neither cpu nor cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError("device 'cuda': torch sees no GPU; use --device cpu")


def dtype_of(model: VideoModel, name: str | None) -> torch.dtype:
    """The element type of a short or full name; the model's own for None."""
    if name is None:
        return model.defaults.dtype
    for short, dtype in DTYPES.items():
        if name in (short, str(dtype).removeprefix("torch.")):
            return dtype
    raise InvalidInputError(f"dtype {name!r} is not one of {', '.join(DTYPES)}")
