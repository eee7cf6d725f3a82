"""A LoRA file on the disk: where it is, what is in it and how strongly it shall act."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rainfusion_trt.engine.metadata import file_sha256
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoModel

_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', peft's
_PREFIXES = ("transformer.", "base_model.model.")
_DORA = ("dora_scale", "lora_magnitude_vector")


@dataclass(frozen=True)
class LoraFile:
    """One LoRA to be fused.

    Parameters
    ----------
    path
        A ``.safetensors`` file, or a folder with one.
    scale
        Factor on its change of the weights; negative inverts it.

    Raises
    ------
    InvalidInputError
        No such file, or a scale of 0 or none that is finite.
    """

    path: Path
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or self.scale == 0.0:
            raise InvalidInputError(
                f"scale {self.scale} of LoRA {self.path} must be a number other than 0; leave the "
                "LoRA out for a model without it"
            )
        object.__setattr__(self, "path", _find(Path(self.path)))

    @classmethod
    def parse(cls, text: str) -> LoraFile:
        """``FILE_OR_DIR`` or ``FILE_OR_DIR:scale``."""
        head, colon, tail = text.rpartition(":")
        if colon and not Path(text).exists():
            try:
                return cls(Path(head), float(tail))
            except ValueError as error:
                if isinstance(error, InvalidInputError):
                    raise
                raise InvalidInputError(
                    f"LoRA {text!r}: no such file, and {tail!r} is no number for its scale"
                ) from error
        return cls(Path(text))

    def sha256(self) -> str:
        """Of the file's bytes."""
        return file_sha256(self.path)


def _find(path: Path) -> Path:
    if path.is_file():
        if path.suffix != ".safetensors":
            raise InvalidInputError(
                f"LoRA {path} must be a .safetensors file; pickled ones can run code and are not "
                "read"
            )
        return path
    if not path.is_dir():
        raise InvalidInputError(
            f"no LoRA at {path}; give a .safetensors file or a folder with one (download it first "
            "if it is on a hub)"
        )
    for name in _NAMES:
        if (path / name).is_file():
            return path / name
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if len(found) != 1:
        what = f"several LoRA files ({', '.join(found)})" if found else "no .safetensors file"
        raise InvalidInputError(f"folder {path} holds {what}; name the file")
    return path / found[0]


def read_adapter(file: LoraFile, model: VideoModel) -> tuple[dict[str, Tensor], dict | None]:
    """Its tensors as ``<module>.lora_A.weight`` and so on, and what it says of its alpha.

    Other spellings (of diffusers' older formats, and of the model's original code where its
    diffusers pipeline reads that) are converted by diffusers.

    Raises
    ------
    InvalidInputError
        The file cannot be read.
    UnsupportedError
        It is a DoRA.
    """
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file.path, framework="pt") as content:
            names = list(content.keys())
        if any(mark in name for name in names for mark in _DORA):
            raise UnsupportedError(f"LoRA {file.path} is a DoRA, which is not supported")
        state, metadata = _loader(model).lora_state_dict(
            str(file.path), use_safetensors=True, return_lora_metadata=True
        )
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"LoRA {file.path} could not be read: {error}") from error
    if metadata is None:
        metadata = _peft_config(file.path)
    if not any(".lora_A." in name for name in state):
        state = convert_unet_state_dict_to_peft(state)
    return _without_prefix(state), None if metadata is None else _without_prefix(metadata)


def _loader(model: VideoModel) -> Any:
    """Whose ``lora_state_dict`` knows the spellings of this model."""
    import diffusers
    from diffusers.loaders import CogVideoXLoraLoaderMixin

    pipeline = getattr(diffusers, model.pipeline_class)
    # Not every pipeline takes LoRA files; this loader has nothing of CogVideoX in it.
    return pipeline if hasattr(pipeline, "lora_state_dict") else CogVideoXLoraLoaderMixin


def _peft_config(path: Path) -> dict[str, Any] | None:
    """What peft writes beside its file, such as lora_alpha; without it the scale would be lost."""
    if not (path.name == _NAMES[1] and path.with_name("adapter_config.json").is_file()):
        return None
    from peft import LoraConfig

    return LoraConfig.from_pretrained(path.parent).to_dict()


def _without_prefix(values: dict[str, Any]) -> dict[str, Any]:
    """Names as the transformer has them, if the file names all of them from outside it."""
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in values):
            return {name.removeprefix(prefix): value for name, value in values.items()}
    return dict(values)
