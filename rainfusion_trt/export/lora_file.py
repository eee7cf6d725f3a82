"""A LoRA file on the disk: where it is, what is in it and how strongly it shall act."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export.lora_names import without_prefix
from rainfusion_trt.hashing import file_sha256
from rainfusion_trt.models.noise_expert import expert_prefix

_NAMES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers', peft's


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


@dataclass(frozen=True)
class Adapter:
    """The content of a LoRA file.

    Attributes
    ----------
    layers
        Layer, as the file names it but for a prefix -> its tensors by what they are: ``A.weight``,
        ``B.weight``, ``B.bias``, ``alpha``, ``diff``, ``diff_b``, and factors of LoKr and LoHa.
    keys
        The same places -> the keys of the file.
    config
        What peft or diffusers wrote of it, such as lora_alpha; empty without.
    """

    layers: dict[str, dict[str, Tensor]]
    keys: dict[str, dict[str, str]]
    config: Mapping[str, Any]

    def scale(self, layer: str, rank: int) -> float:
        """Factor of a low-rank change for which the file itself has no alpha.

        Without any, W + B A is what trainers mean: alpha is the rank.
        """
        alpha = self.config.get("lora_alpha")
        for pattern, value in (self.config.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", layer):  # as peft matches it
                alpha = value
                break
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank)


# Trainers' spellings; peft may put the adapter's name, such as default, into the middle.
_FORMS = tuple(
    (re.compile(pattern), part)
    for pattern, part in (
        (r"(.+)\.lora_A(?:\.[^.]+)?\.weight", "A.weight"),
        (r"(.+)\.lora_B(?:\.[^.]+)?\.weight", "B.weight"),
        (r"(.+)\.lora_B(?:\.[^.]+)?\.bias", "B.bias"),
        (r"(.+)\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight", "A.weight"),
        (r"(.+)\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight", "B.weight"),
        (r"(.+)\.(?:lora_up|lora\.up)\.bias", "B.bias"),
    )
)
_NAMED_PART = re.compile(r"(.+)\.(alpha|diff|diff_b|lokr_w[12](?:_[ab])?|hada_w[12]_[ab])")
_OTHER_METHODS = tuple(
    (re.compile(pattern), method)
    for pattern, method in (
        (r"dora_scale|lora_magnitude_vector", "DoRA"),
        (r"\.(lora_mid|lokr_t2|hada_t[12])\b", "LoRA with a Tucker decomposition"),
        (r"\.(boft_|oft_)", "OFT"),
        (r"\.(a1|a2|b1|b2)\.weight$", "GLoRA"),
        (r"\.(on_input|ia3_l)", "IA3"),
        (r"\.vera_lambda", "VeRA"),
        (r"\.(set_weight|reshape_weight)$", "patch that replaces weights"),
    )
)


def read_adapter(file: LoraFile) -> Adapter:
    """Its tensors, whatever trainer spelled them.

    Read are the spellings of peft, diffusers (old ones too), kohya and musubi, ComfyUI and LyCORIS;
    float8 is widened.

    Raises
    ------
    InvalidInputError
        The file cannot be read, or says something twice.
    UnsupportedError
        It is a DoRA or of another method that is not read, or for two transformers; the message
        names it.
    """
    tensors, header = _content(file.path)
    _refuse_experts(file.path, tensors)
    layers: dict[str, dict[str, Tensor]] = {}
    keys: dict[str, dict[str, str]] = {}
    for key, tensor in tensors.items():
        for pattern, method in _OTHER_METHODS:
            if pattern.search(key):
                raise UnsupportedError(
                    f"LoRA {file.path} is a {method} (it has {key}), which is not supported"
                )
        layer, part = _spelled(key)
        if part in keys.setdefault(layer, {}):
            twice = f"{keys[layer][part]} and {key}"
            raise InvalidInputError(
                f"LoRA {file.path} has two tensors for one place, {twice}; keep one adapter in it"
            )
        if not tensor.is_floating_point() and part != "alpha":
            raise UnsupportedError(
                f"LoRA {file.path} is quantised: {key} is {str(tensor.dtype)[6:]}; save it in 16 "
                "bits"
            )
        keys[layer][part] = key
        layers.setdefault(layer, {})[part] = tensor.float() if tensor.itemsize == 1 else tensor
    return Adapter(layers, keys, _config(file.path, header))


def _refuse_experts(path: Path, keys: Iterable[str]) -> None:
    experts = sorted({found for key in keys if (found := expert_prefix(key))})
    if experts:
        raise UnsupportedError(
            f"LoRA {path} says of which of two transformers its layers are ({', '.join(experts)}): "
            "save those of each in a file of its own without that, and export each transformer "
            "with its own (--component, --lora)"
        )


def _spelled(key: str) -> tuple[str, str]:
    """Layer without prefix and what the tensor is in it; "" where the key is of no known form."""
    name = key.replace(".processor.", ".")
    name = re.sub(r"\.(to_[qkv])_lora\.", r".\1.lora.", name)  # diffusers, long ago
    name = name.replace(".to_out_lora.", ".to_out.0.lora.")
    for pattern, part in _FORMS:
        found = pattern.fullmatch(name)
        if found:
            return without_prefix(found[1]), part
    found = _NAMED_PART.fullmatch(name)
    if found:
        return without_prefix(found[1]), found[2]
    return without_prefix(name), ""


def _content(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    try:
        with safe_open(path, framework="pt") as content:
            header = content.metadata() or {}
        return load_file(path), header
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InvalidInputError(f"LoRA {path} could not be read: {error}") from error


def _config(path: Path, header: Mapping[str, str]) -> dict[str, Any]:
    """What diffusers writes into its file or peft beside it; without it the scale would be lost."""
    beside = path.with_name("adapter_config.json")
    if "lora_adapter_metadata" in header:
        origin, text = "its lora_adapter_metadata", header["lora_adapter_metadata"]
    elif path.name == _NAMES[1] and beside.is_file():
        origin, text = beside.name, beside.read_text(encoding="utf-8")
    else:
        return {}
    try:
        found = json.loads(text)
        config = {without_prefix(key): value for key, value in found.items()}
    except (ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"LoRA {path}: {origin} is no configuration of an adapter ({error})"
        ) from error
    method = config.get("peft_type") or "LORA"
    if method != "LORA" or config.get("use_dora"):
        raise UnsupportedError(
            f"LoRA {path} is a {'DoRA' if config.get('use_dora') else method} ({origin} says so), "
            "which is not supported"
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping) or not all(map(_is_pattern, patterns)):
        raise InvalidInputError(
            f"LoRA {path}: {origin} has alpha_pattern {shown(patterns)}, expected regular "
            "expressions with a number for each"
        )
    numbers = {"lora_alpha": config.get("lora_alpha"), **patterns}
    for name, value in numbers.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value)):
            raise InvalidInputError(f"LoRA {path}: {origin} has alpha {value!r} for {name}")
    return config


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
