"""OpenSoraPlan v1.2 checkpoints as its authors published them.

A directory such as ``93x720p`` holds config.json of their class OpenSoraT2V and its state dict,
whose names and shapes are those of diffusers' AllegroTransformer3DModel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.transformer import Transformer
from rainfusion_trt.models.weight_files import WeightFiles

_CLASS = "OpenSoraT2V"
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model-*-of-*.safetensors")
# Settings with which OpenSoraT2V is the network of AllegroTransformer3DModel: preset ROPE-L/122.
_REQUIRED = {
    "norm_type": "ada_norm_single",
    "use_rope": True,
    "downsampler": None,
    "patch_size": 2,
    "patch_size_t": 1,
}
_SAME = (
    "num_attention_heads",
    "attention_head_dim",
    "in_channels",
    "num_layers",
    "cross_attention_dim",
    "attention_bias",
    "activation_fn",
    "norm_elementwise_affine",
    "norm_eps",
    "caption_channels",
    "patch_size",
    "patch_size_t",
)


def is_original(checkpoint: str) -> bool:
    """Whether a directory holds a transformer of the original code."""
    path = Path(checkpoint) / "config.json"
    return path.is_file() and _read(path).get("_class_name") == _CLASS


def load_original(cls: type[Transformer], checkpoint: str, *, dtype: torch.dtype) -> Transformer:
    """An AllegroTransformer3DModel with the weights of an original checkpoint.

    Parameters
    ----------
    cls
        AllegroTransformer3DModel.
    checkpoint
        Directory of config.json and diffusion_pytorch_model.safetensors, in one file or several.

    Raises
    ------
    InvalidInputError
        Configuration or weights are missing, or do not fit each other.
    UnsupportedError
        Another network than version 1.2's with rotary positions.
    """
    folder = Path(checkpoint)
    config = allegro_config(folder / "config.json")
    with torch.device("meta"):
        module = cls(**config)
    module.load_state_dict(_weights(folder, module, dtype), assign=True)
    return module.eval().requires_grad_(False)


def allegro_config(path: Path) -> dict[str, Any]:
    """Constructor arguments of AllegroTransformer3DModel from the original config.json."""
    original = _read(path)
    for key, value in _REQUIRED.items():
        if original.get(key) != value:
            raise UnsupportedError(
                f"{path}: {key} is {original.get(key)!r}, version 1.2 with rotary positions "
                f"(OpenSoraT2V-ROPE-L/122) has {value!r}; other presets are not supported"
            )
    needed = (*_SAME, "sample_size", "sample_size_t")
    missing = [key for key in needed if original.get(key) is None]
    if missing:
        raise InvalidInputError(
            f"{path} lacks {', '.join(missing)}; copy the config.json that was published beside "
            "the weights"
        )
    rows_columns = original["sample_size"]
    height, width = (rows_columns,) * 2 if isinstance(rows_columns, int) else rows_columns
    frames = original["sample_size_t"]
    # OpenSoraT2V computes these where its configuration gives no scale.
    computed = {
        "interpolation_scale_t": (frames - 1) // 16 + 1 if frames % 2 else frames / 16,
        "interpolation_scale_h": height / 30,
        "interpolation_scale_w": width / 40,
    }
    scales = {
        key: float(value if original.get(key) is None else original[key])
        for key, value in computed.items()
    }
    return {
        **{key: original[key] for key in _SAME},
        **scales,
        "out_channels": original.get("out_channels") or original["in_channels"],
        "sample_height": height,
        "sample_width": width,
        "sample_frames": frames,
    }


def _weights(folder: Path, module: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The state dict in `dtype`, names and shapes checked before a tensor is read."""
    found = [path.name for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    if not found:
        raise InvalidInputError(
            f"checkpoint {str(folder)!r} holds no {_WEIGHTS[0]}; other formats are not read"
        )
    files = WeightFiles.of_files(folder, found)
    expected = module.state_dict()
    files.check({name: tuple(tensor.shape) for name, tensor in expected.items()})
    scales = files.scales()
    weights = {}
    for name in expected:
        tensor = files.tensor(name)
        weights[name] = (tensor.float() * scales[name] if name in scales else tensor).to(dtype)
    return weights


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} is not a readable configuration: {error}") from error
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path} holds {type(content).__name__}, expected an object")
    return content
