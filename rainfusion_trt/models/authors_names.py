"""From the names of a model's authors, and ComfyUI's, to those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.models.checkpoint_checks import Shapes, first_line, named
from rainfusion_trt.models.transformer import Transformer


class File(Protocol):
    """Weights with names: `WeightFiles` and `GgufFile`."""

    @property
    def origin(self) -> str:
        """What errors call it."""

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Shapes by name."""

    def stored_name(self, name: str) -> str:
        """What the file itself calls one of them."""


Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def converter(
    cls: type[Transformer], file: File, expected: Shapes, config: Mapping[str, Any]
) -> Convert:
    """From the names of a file to those of diffusers.

    Raises
    ------
    InvalidInputError
        It has neither, as far as diffusers knows.
    """
    names = file.weights().keys()
    if 2 * len(names & expected.keys()) > len(names):
        return dict
    from diffusers.loaders import single_file_model

    known = single_file_model.SINGLE_FILE_LOADABLE_CLASSES.get(cls.__name__)
    if known is None:
        raise InvalidInputError(
            f"checkpoint {file.origin!r} has names such as {named(names, 1)}, which are not "
            f"diffusers', and diffusers converts no others for {cls.__name__}: take the weights in "
            "diffusers' format"
        )
    convert = known["checkpoint_mapping_fn"]

    def converted(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {authors_name(cls.__name__, name): t for name, t in tensors.items()}
        return convert(checkpoint=named, config=dict(config))

    return converted


# The layers of an embedder are mlp.0 and mlp.2 in the authors' code, those of a block fc1 and fc2.
_MLP = r"^((?!txt_in\.t_embedder|time_in|guidance_in).*mlp)"
# By class: names that diffusers' converter does not take -> the authors' or diffusers'. Those of
# HunyuanVideo are ComfyUI's; Wan's is of first and last frame to video.
_NAMES = {
    "WanTransformer3DModel": (
        (r"^img_emb\.emb_pos$", "condition_embedder.image_embedder.pos_embed"),
    ),
    "HunyuanVideoTransformer3DModel": (
        (r"^(txt_in\.t_embedder|time_in|guidance_in)\.in_layer\.", r"\1.mlp.0."),
        (r"^(txt_in\.t_embedder|time_in|guidance_in)\.out_layer\.", r"\1.mlp.2."),
        (r"^(txt_in\.c_embedder)\.in_layer\.", r"\1.linear_1."),
        (r"^(txt_in\.c_embedder)\.out_layer\.", r"\1.linear_2."),
        (r"_mod\.lin\.", "_mod.linear."),
        (r"\.modulation\.lin\.", ".modulation.linear."),
        (r"(img|txt|self)_attn\.(qkv|proj)\.", r"\1_attn_\2."),
        (r"(img|txt)_attn\.norm\.query_norm\.(weight|scale)$", r"\1_attn_q_norm.weight"),
        (r"(img|txt)_attn\.norm\.key_norm\.(weight|scale)$", r"\1_attn_k_norm.weight"),
        (r"\.norm\.query_norm\.(weight|scale)$", ".q_norm.weight"),
        (r"\.norm\.key_norm\.(weight|scale)$", ".k_norm.weight"),
        (rf"{_MLP}\.0\.(weight|bias)$", r"\1.fc1.\2"),
        (rf"{_MLP}\.2\.(weight|bias)$", r"\1.fc2.\2"),
    ),
}


def authors_name(cls_name: str, name: str) -> str:
    """A name as the converter of the class takes it."""
    for pattern, replacement in _NAMES.get(cls_name, ()):
        name = re.sub(pattern, replacement, name)
    return name


def on_shapes(convert: Convert, file: File, wanted: str) -> Callable[[Shapes], Shapes]:
    """The same on shapes alone, by tensors without storage."""

    def converted(shapes: Shapes) -> Shapes:
        try:
            return {n: tuple(t.shape) for n, t in convert(_without_storage(shapes)).items()}
        except RainFusionError:
            raise
        except Exception as error:  # of any kind: the converter takes names for granted
            raise InvalidInputError(
                f"checkpoint {file.origin!r} does not fit {wanted}: diffusers cannot convert its "
                f"names ({first_line(error)}); choose the model it belongs to"
            ) from error

    return converted


def _without_storage(shapes: Shapes) -> dict[str, Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def check_spellings(convert: Convert, file: File) -> None:
    """Refuse a file that holds a tensor under two of its names, of which diffusers takes one.

    Names are converted one by one, which shows what they come to; that it is so beside the others,
    whose names may decide how one is read, all without one of the two show.

    Raises
    ------
    InvalidInputError
        The message names both.
    """
    if convert is dict:
        return
    tensors = _without_storage(file.weights())
    all_of_them = convert(dict(tensors)).keys()
    first: dict[str, str] = {}
    for name, tensor in tensors.items():
        try:
            meant = convert({name: tensor})
        except Exception:  # noqa: S112  (of any kind: it cannot be read without others)
            continue
        others = {first.setdefault(target, name) for target in meant} - {name}
        for other in sorted(others):
            if any(
                convert({n: t for n, t in tensors.items() if n != spelling}).keys() == all_of_them
                for spelling in (name, other)
            ):
                both = f"{file.stored_name(other)} and {file.stored_name(name)}"
                raise InvalidInputError(
                    f"checkpoint {file.origin!r} holds one tensor under two names, {both}: which "
                    "is right cannot be told; save it with the one to take"
                )


def kept_in_float32(cls: type[Transformer], file: File, convert: Convert) -> frozenset[str]:
    """Weights of the file that diffusers keeps in float32 whatever the type of the others."""
    kept = frozenset(getattr(cls, "_keep_in_fp32_modules", None) or ())
    tensors = _without_storage(file.weights())
    names = {id(tensor): name for name, tensor in tensors.items()}
    found = set()
    for name, tensor in convert(dict(tensors)).items():
        whole = tensor if tensor._base is None else tensor._base  # a part, where it was cut
        if not kept.isdisjoint(name.split(".")) and id(whole) in names:
            found.add(names[id(whole)])
    return frozenset(found)
