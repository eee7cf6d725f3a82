"""Layers as trainers name them: every name has its place in the diffusers transformer."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanTransformer3DModel, WanVACETransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from helpers.lora_subject import HUNYUAN, RANK, WAN, flat
from rainfusion_trt.export import lora_names
from rainfusion_trt.export.lora_names import known_names
from rainfusion_trt.models import get_model


@pytest.mark.parametrize("alpha", [None, 1.0, 2 * RANK])
def test_hunyuanvideo_of_musubi(subject, alpha):
    one = subject("hunyuanvideo")
    for key, _, *names in HUNYUAN:
        one.low_rank(flat(key), *names, alpha=alpha)
    one.check()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "transformer."])
@pytest.mark.parametrize("column", [0, 1], ids=["original", "comfyui"])
def test_hunyuanvideo_of_comfyui_and_of_the_original(subject, prefix, column):
    one = subject("hunyuanvideo")
    for row in HUNYUAN:
        one.low_rank(prefix + row[column], *row[2:], alpha=1.5)
    one.check()


def test_hunyuanvideos_last_modulation_has_its_halves_the_other_way_round(subject):
    """Shift and scale in the original, scale and shift in diffusers, as the published weights."""
    one = subject("hunyuanvideo")
    before = one.before["norm_out.linear.weight"]
    down, up = one.random(RANK, before.shape[1]), one.random(before.shape[0], RANK)
    one.tensors["diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight"] = down
    one.tensors["diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight"] = up
    shift, scale = up.chunk(2)
    one.change("norm_out.linear", by=torch.cat([scale, shift]) @ down)
    one.check()


@pytest.mark.parametrize("alpha", [None, 1.0])
@pytest.mark.parametrize(
    "spelled",
    [flat, lambda key: f"diffusion_model.{key}", lambda key: key],
    ids=["kohya", "diffusion_model", "bare"],
)
def test_wan_by_its_original_names(subject, spelled, alpha):
    one = subject("wan2.1-1.3b")
    for key, name in WAN:
        one.low_rank(spelled(key), name, alpha=alpha)
    one.check()


def test_kohya_with_q_and_v_only(subject):
    one = subject("wan2.1-1.3b")
    for key, name in WAN[:2]:
        one.low_rank(flat(key), name, alpha=4.0)
    one.check()


@pytest.mark.parametrize("name", ["cogvideox-2b", "allegro", "wan2.1-1.3b"])
@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_"])
def test_diffusers_names_with_underscores(subject, name, prefix):
    one = subject(name)
    layers = [n.removesuffix(".weight") for n in one.before if n.endswith("to_q.weight")]
    for layer in layers:
        one.low_rank(prefix + layer.replace(".", "_"), layer, alpha=2.0)
    one.check()


@pytest.mark.parametrize("kind", ["t2v", "i2v", "vace"])
def test_every_name_of_wan_is_what_diffusers_makes_of_it(kind):
    """All layers, those of image to video and VACE too, by diffusers' converter of checkpoints."""
    config = dict(get_model("wan2.1-1.3b").config("tiny", layers=2))
    cls = WanTransformer3DModel
    if kind == "i2v":
        config.update(image_dim=32, added_kv_proj_dim=256)
    if kind == "vace":
        cls, config = WanVACETransformer3DModel, {**config, "vace_layers": [0, 1]}
    with torch.device("meta"):
        transformer = cls(**config)
    names = known_names(transformer)
    parameters = [name for name, _ in transformer.named_parameters()]
    owners = {name.removesuffix(".weight").removesuffix(".bias") for name in parameters}
    named = {place.owner: name for name, (place,) in lora_names._wan(transformer, sorted(owners))}
    assert owners - set(named) <= {"patch_embedding", "vace_patch_embedding"}
    for owner, name in named.items():
        assert names[name][0].owner == owner
        kind = "" if owner.endswith("scale_shift_table") else ".weight"
        converted = convert_wan_transformer_to_diffusers({name + kind: torch.ones(2)})
        assert list(converted) == [owner + kind]
