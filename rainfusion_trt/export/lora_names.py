"""Where a layer of a LoRA file acts: names of trainers -> parameters of a diffusers transformer.

Files name layers as diffusers does, as the model's original code does, as ComfyUI does, and each of
these with underscores for dots (kohya, musubi). All names of one transformer are made here from its
own layers, so that a name is looked up, never guessed from its form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor, nn

_PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "transformer.",
)
_FLAT_PREFIX = re.compile(r"(lora_unet|lora_transformer|lycoris)_+")


@dataclass(frozen=True)
class Place:
    """Part of a layer.

    Attributes
    ----------
    owner
        Module or bare parameter in the diffusers transformer.
    source
        Output rows of the file's layer ...
    target
        ... and those of the owner they act on.
    """

    owner: str
    source: slice = field(default_factory=lambda: slice(None))
    target: slice = field(default_factory=lambda: slice(None))


Names = dict[str, tuple[Place, ...]]


def known_names(transformer: nn.Module) -> Names:
    """Every name that a file may give to a part of this transformer, without prefix."""
    owners = {name.removesuffix(".weight").removesuffix(".bias"): None
              for name, _ in transformer.named_parameters()}  # fmt: skip
    names: Names = {owner: (Place(owner),) for owner in owners}
    original = _ORIGINALS.get(type(transformer).__name__)
    if original is not None:
        for name, places in original(transformer, list(owners)):
            names.setdefault(name, places)
    for name, places in list(names.items()):
        names.setdefault(name.replace(".", "_"), places)
    return names


def without_prefix(name: str) -> str:
    """A layer's name as it stands in :func:`known_names`, if it is one of this transformer."""
    flat = _FLAT_PREFIX.match(name)
    if flat and "." not in name:
        return name[flat.end() :]
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
        name = name.removeprefix(prefix)
    return name


# -- original names --------------------------------------------------------------------------------

_Entries = Iterator[tuple[str, tuple[Place, ...]]]


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    """By the first rule for the whole name; None without one."""
    for pattern, replacement in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(replacement)
    return None


# Those of VACE's branch have the same layers.
_WAN_BLOCK = r"((?:vace_)?blocks\.\d+)"
_WAN = (
    (rf"{_WAN_BLOCK}\.attn1\.to_([qkv])", r"\1.self_attn.\2"),
    (rf"{_WAN_BLOCK}\.attn1\.to_out\.0", r"\1.self_attn.o"),
    (rf"{_WAN_BLOCK}\.attn1\.norm_([qk])", r"\1.self_attn.norm_\2"),
    (rf"{_WAN_BLOCK}\.attn2\.to_([qkv])", r"\1.cross_attn.\2"),
    (rf"{_WAN_BLOCK}\.attn2\.to_out\.0", r"\1.cross_attn.o"),
    (rf"{_WAN_BLOCK}\.attn2\.norm_([qk])", r"\1.cross_attn.norm_\2"),
    (rf"{_WAN_BLOCK}\.attn2\.add_([kv])_proj", r"\1.cross_attn.\2_img"),
    (rf"{_WAN_BLOCK}\.attn2\.norm_added_k", r"\1.cross_attn.norm_k_img"),
    (rf"{_WAN_BLOCK}\.norm2", r"\1.norm3"),
    (rf"{_WAN_BLOCK}\.ffn\.net\.0\.proj", r"\1.ffn.0"),
    (rf"{_WAN_BLOCK}\.ffn\.net\.2", r"\1.ffn.2"),
    (rf"{_WAN_BLOCK}\.scale_shift_table", r"\1.modulation"),
    (r"condition_embedder\.(time|text)_embedder\.linear_1", r"\1_embedding.0"),
    (r"condition_embedder\.(time|text)_embedder\.linear_2", r"\1_embedding.2"),
    (r"condition_embedder\.image_embedder\.norm1", r"img_emb.proj.0"),
    (r"condition_embedder\.image_embedder\.ff\.net\.0\.proj", r"img_emb.proj.1"),
    (r"condition_embedder\.image_embedder\.ff\.net\.2", r"img_emb.proj.3"),
    (r"condition_embedder\.image_embedder\.norm2", r"img_emb.proj.4"),
    (r"(vace_blocks\.\d+)\.proj_in", r"\1.before_proj"),
    (r"(vace_blocks\.\d+)\.proj_out", r"\1.after_proj"),
    (r"condition_embedder\.time_proj", r"time_projection.1"),
    (r"scale_shift_table", r"head.modulation"),
    (r"proj_out", r"head.head"),
)


def _wan(transformer: nn.Module, owners: list[str]) -> _Entries:
    for owner in owners:
        name = _renamed(owner, _WAN)
        if name is not None:
            yield name, (Place(owner),)


_HUNYUAN = (
    (r"transformer_blocks\.(\d+)\.attn\.to_out\.0", r"double_blocks.\1.img_attn_proj"),
    (r"transformer_blocks\.(\d+)\.attn\.to_add_out", r"double_blocks.\1.txt_attn_proj"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_([qk])", r"double_blocks.\1.img_attn_\2_norm"),
    (r"transformer_blocks\.(\d+)\.attn\.norm_added_([qk])", r"double_blocks.\1.txt_attn_\2_norm"),
    (r"transformer_blocks\.(\d+)\.norm1\.linear", r"double_blocks.\1.img_mod.linear"),
    (r"transformer_blocks\.(\d+)\.norm1_context\.linear", r"double_blocks.\1.txt_mod.linear"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj", r"double_blocks.\1.img_mlp.fc1"),
    (r"transformer_blocks\.(\d+)\.ff\.net\.2", r"double_blocks.\1.img_mlp.fc2"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj", r"double_blocks.\1.txt_mlp.fc1"),
    (r"transformer_blocks\.(\d+)\.ff_context\.net\.2", r"double_blocks.\1.txt_mlp.fc2"),
    (r"single_transformer_blocks\.(\d+)\.attn\.norm_([qk])", r"single_blocks.\1.\2_norm"),
    (r"single_transformer_blocks\.(\d+)\.proj_out", r"single_blocks.\1.linear2"),
    (r"single_transformer_blocks\.(\d+)\.norm\.linear", r"single_blocks.\1.modulation.linear"),
    (r"x_embedder\.proj", r"img_in.proj"),
    (r"context_embedder\.proj_in", r"txt_in.input_embedder"),
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_1", r"txt_in.t_embedder.mlp.0"),
    (r"context_embedder\.time_text_embed\.timestep_embedder\.linear_2", r"txt_in.t_embedder.mlp.2"),
    (r"context_embedder\.time_text_embed\.text_embedder\.(linear_[12])", r"txt_in.c_embedder.\1"),
    (r"time_text_embed\.timestep_embedder\.linear_1", r"time_in.mlp.0"),
    (r"time_text_embed\.timestep_embedder\.linear_2", r"time_in.mlp.2"),
    (r"time_text_embed\.guidance_embedder\.linear_1", r"guidance_in.mlp.0"),
    (r"time_text_embed\.guidance_embedder\.linear_2", r"guidance_in.mlp.2"),
    (r"time_text_embed\.text_embedder\.linear_1", r"vector_in.in_layer"),
    (r"time_text_embed\.text_embedder\.linear_2", r"vector_in.out_layer"),
    (r"proj_out", r"final_layer.linear"),
)
_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)"
_REFINER_NAME = r"txt_in.individual_token_refiner.blocks.\1"
_HUNYUAN_REFINER = (
    (rf"{_REFINER}\.(norm[12])", rf"{_REFINER_NAME}.\2"),
    (rf"{_REFINER}\.attn\.to_out\.0", rf"{_REFINER_NAME}.self_attn_proj"),
    (rf"{_REFINER}\.ff\.net\.0\.proj", rf"{_REFINER_NAME}.mlp.fc1"),
    (rf"{_REFINER}\.ff\.net\.2", rf"{_REFINER_NAME}.mlp.fc2"),
    (rf"{_REFINER}\.norm_out\.linear", rf"{_REFINER_NAME}.adaLN_modulation.1"),
)
# Layers of the original that are several in diffusers, in the order of their rows.
_HUNYUAN_JOINED = (
    (
        r"transformer_blocks\.(\d+)\.attn\.to_q",
        r"double_blocks.\1.img_attn_qkv",
        ("to_q", "to_k", "to_v"),
    ),
    (
        r"transformer_blocks\.(\d+)\.attn\.add_q_proj",
        r"double_blocks.\1.txt_attn_qkv",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
    ),
    (
        r"single_transformer_blocks\.(\d+)\.attn\.to_q",
        r"single_blocks.\1.linear1",
        ("to_q", "to_k", "to_v", "../proj_mlp"),
    ),
    (
        rf"{_REFINER}\.attn\.to_q",
        rf"{_REFINER_NAME}.self_attn_qkv",
        ("to_q", "to_k", "to_v"),
    ),
)
# ComfyUI's names from the original ones, as its loader renames checkpoints.
_COMFYUI = (
    ("txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer"),
    ("txt_in.t_embedder.mlp.2", "txt_in.t_embedder.out_layer"),
    ("txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"),
    ("txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
    ("_mod.linear", "_mod.lin"),
    ("_attn_qkv", "_attn.qkv"),
    ("mlp.fc1", "mlp.0"),
    ("mlp.fc2", "mlp.2"),
    ("_attn_q_norm", "_attn.norm.query_norm"),
    ("_attn_k_norm", "_attn.norm.key_norm"),
    (".q_norm", ".norm.query_norm"),
    (".k_norm", ".norm.key_norm"),
    ("_attn_proj", "_attn.proj"),
    (".modulation.linear", ".modulation.lin"),
    ("_in.mlp.2", "_in.out_layer"),
    ("_in.mlp.0", "_in.in_layer"),
)


def _hunyuanvideo(transformer: nn.Module, owners: list[str]) -> _Entries:
    for name, places in _hunyuanvideo_original(transformer, owners):
        yield name, places
        for old, new in _COMFYUI:
            name = name.replace(old, new)
        yield name, places


def _hunyuanvideo_original(transformer: nn.Module, owners: list[str]) -> _Entries:
    for owner in owners:
        for pattern, replacement, parts in _HUNYUAN_JOINED:
            found = re.fullmatch(pattern, owner)
            if found:
                parents = owner.rpartition(".")[0], owner.rpartition(".")[0].rpartition(".")[0]
                joined = [
                    f"{parents[part.startswith('../')]}.{part.removeprefix('../')}"
                    for part in parts
                ]
                yield found.expand(replacement), _rows_in_order(transformer, joined)
        name = _renamed(owner, _HUNYUAN + _HUNYUAN_REFINER)
        if name is not None:
            yield name, (Place(owner),)
    # The original has shift before scale in its last modulation, diffusers scale before shift.
    half = _weight(transformer, "norm_out.linear").shape[0] // 2
    first, second = slice(0, half), slice(half, 2 * half)
    swapped = Place("norm_out.linear", first, second), Place("norm_out.linear", second, first)
    yield "final_layer.adaLN_modulation.1", swapped


def _weight(transformer: nn.Module, owner: str) -> Tensor:
    return transformer.get_parameter(f"{owner}.weight")


def _rows_in_order(transformer: nn.Module, owners: list[str]) -> tuple[Place, ...]:
    places, start = [], 0
    for owner in owners:
        stop = start + _weight(transformer, owner).shape[0]
        places.append(Place(owner, slice(start, stop)))
        start = stop
    return tuple(places)


_ORIGINALS = {
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": _wan,
    "WanAnimateTransformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuanvideo,
}
