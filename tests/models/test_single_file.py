"""Checkpoints of one file, as their authors, ComfyUI and Kijai's and city96's users have them."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors.torch import save_file

from helpers.wan_authors import MODEL, authors, authors_name, load, mark, refused, same, write
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import lora_names
from rainfusion_trt.models import authors_names, get_model
from rainfusion_trt.models import single_file as single
from rainfusion_trt.models.checkpoint_checks import check_shapes
from rainfusion_trt.models.wan import Wan


@pytest.fixture(scope="module")
def original():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)


@pytest.mark.parametrize(
    "prefix", ["", "model.diffusion_model.", "diffusion_model.", "transformer.", "model."]
)
@pytest.mark.parametrize("names", [authors, lambda t, p: {p + n: x for n, x in t.items()}])
def test_names_and_prefixes(original, tmp_path, prefix, names):
    path = write(tmp_path, names(original.state_dict(), prefix))
    same(load(path), original.state_dict())


def test_other_parts_of_a_pipeline_in_the_file_stay_there(original, tmp_path):
    tensors = authors(original.state_dict(), "model.diffusion_model.")
    parts = ("vae.decoder.conv.weight", "text_encoders.umt5.shared.weight", "first_stage_model.a")
    same(load(write(tmp_path, {**tensors, **dict.fromkeys(parts, torch.ones(2))} | {
        name: torch.ones(2) for name in parts})), original.state_dict())  # fmt: skip


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_it_is_what_a_folder_of_diffusers_is(original, tmp_path, stored):
    """In values and types, those of what stays in float32 and buffers too."""
    tensors = {n: t.to(stored) for n, t in original.state_dict().items()}
    folder = tmp_path / "folder"
    original.save_config(folder)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    expected = load(folder, torch.bfloat16)
    actual = load(write(tmp_path, authors(tensors)), torch.bfloat16)
    same(actual, expected.state_dict())
    assert expected.scale_shift_table.dtype is torch.float32  # or the test says nothing
    buffers = dict(expected.named_buffers())
    assert {n: (b.dtype, b.sum()) for n, b in actual.named_buffers()} == {
        n: (b.dtype, b.sum()) for n, b in buffers.items()
    }
    actual.save_pretrained(tmp_path / "again")  # no two weights share their memory


@pytest.mark.parametrize("rows", [False, True], ids=["per tensor", "per row"])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_float8_under_the_authors_names(original, tmp_path, rows, suffix):
    tensors = authors(original.state_dict(), "model.diffusion_model.")
    by_hand = {}
    for name in [n for n, t in tensors.items() if ".blocks." in n and t.dim() == 2]:
        largest = tensors[name].abs().amax(1, keepdim=True) if rows else tensors[name].abs().max()
        scale = largest / 448 * 1700
        tensors[name] = (tensors[name] / scale * 1700).to(torch.float8_e4m3fn)
        tensors[name.replace("weight", suffix)] = scale / 1700
        tensors[name.replace("weight", "comfy_quant")] = mark(format="float8_e4m3fn")
        by_hand[name] = (tensors[name].double() * (scale / 1700).double()).float()
    tensors["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    loaded = load(write(tmp_path, tensors)).state_dict()
    assert len(by_hand) == 10
    for name, tensor in original.state_dict().items():
        expected = by_hand.get("model.diffusion_model." + authors_name(name), tensor)
        assert torch.allclose(loaded[name], expected, rtol=1e-6, atol=0), name


def test_the_authors_folder_in_shards(original, tmp_path, caplog):
    """config.json is the authors', so that the configuration is the registry's."""
    tiny = Wan("tiny", full=MODEL.config("tiny", layers=1), tiny=MODEL.configs["tiny"],
               defaults=MODEL.defaults)  # fmt: skip
    tensors = authors(original.state_dict())
    names, index = list(tensors), {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        file = f"diffusion_pytorch_model-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, tmp_path / file)
        index |= dict.fromkeys(part, file)
    content = {"metadata": {}, "weight_map": index}
    (tmp_path / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(content))
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "WanModel", "dim": 256}))
    with caplog.at_level(logging.INFO, logger="rainfusion_trt"):
        same(load(tmp_path, model=tiny), original.state_dict())
    assert "that of tiny in the registry" in caplog.text
    refused(tmp_path, InvalidInputError, r"does not fit wan2\.1-1\.3b")


def test_which_configuration_counts_is_in_the_log(original, tmp_path, caplog):
    path = write(tmp_path, authors(original.state_dict()))
    with caplog.at_level(logging.INFO, logger="rainfusion_trt"):
        load(path)
    assert f"its configuration is that of {tmp_path / 'config.json'}" in caplog.text


def stored_hunyuan() -> dict[str, tuple[str, ...]]:
    """ComfyUI's name -> the authors', of everything that ComfyUI renames."""
    pairs = {
        "txt_in.t_embedder.in_layer.weight": "txt_in.t_embedder.mlp.0.weight",
        "txt_in.c_embedder.out_layer.bias": "txt_in.c_embedder.linear_2.bias",
        "time_in.out_layer.weight": "time_in.mlp.2.weight",
        "guidance_in.in_layer.bias": "guidance_in.mlp.0.bias",
        "vector_in.in_layer.weight": "vector_in.in_layer.weight",
        "double_blocks.3.img_mod.lin.weight": "double_blocks.3.img_mod.linear.weight",
        "double_blocks.3.txt_attn.qkv.bias": "double_blocks.3.txt_attn_qkv.bias",
        "double_blocks.3.img_attn.proj.weight": "double_blocks.3.img_attn_proj.weight",
        "double_blocks.3.img_attn.norm.query_norm.scale": "double_blocks.3.img_attn_q_norm.weight",
        "double_blocks.3.txt_attn.norm.key_norm.weight": "double_blocks.3.txt_attn_k_norm.weight",
        "double_blocks.3.img_mlp.0.weight": "double_blocks.3.img_mlp.fc1.weight",
        "double_blocks.3.txt_mlp.2.bias": "double_blocks.3.txt_mlp.fc2.bias",
        "single_blocks.5.modulation.lin.weight": "single_blocks.5.modulation.linear.weight",
        "single_blocks.5.norm.query_norm.scale": "single_blocks.5.q_norm.weight",
        "final_layer.linear.weight": "final_layer.linear.weight",
    }
    refiner = "txt_in.individual_token_refiner.blocks.1."
    pairs[f"{refiner}self_attn.qkv.weight"] = f"{refiner}self_attn_qkv.weight"
    pairs[f"{refiner}self_attn.proj.bias"] = f"{refiner}self_attn_proj.bias"
    pairs[f"{refiner}mlp.2.weight"] = f"{refiner}mlp.fc2.weight"
    return pairs


def test_names_of_comfyui_for_hunyuanvideo():
    cls = "HunyuanVideoTransformer3DModel"
    for comfy, original in stored_hunyuan().items():
        assert authors_names.authors_name(cls, comfy) == original
        assert authors_names.authors_name(cls, original) == original  # the authors' stay


def test_wan_of_an_image_or_two(tmp_path):
    """From the first frame, or from the first and the last, whose places diffusers' converter
    does not know; against the model that the file was made from, by names of hand.
    """
    images = {"image_dim": 24, "added_kv_proj_dim": 256, "pos_embed_seq_len": 10}
    config = {**MODEL.config("tiny", layers=1), **images}
    made = MODEL.create(config, dtype=torch.float32)
    tensors = authors(made.state_dict())
    hand = (
        ("condition_embedder.image_embedder.pos_embed", "img_emb.emb_pos"),
        ("condition_embedder.image_embedder.norm1.", "img_emb.proj.0."),
        ("condition_embedder.image_embedder.ff.net.0.proj.", "img_emb.proj.1."),
        ("condition_embedder.image_embedder.ff.net.2.", "img_emb.proj.3."),
        ("condition_embedder.image_embedder.norm3.", "img_emb.proj.4."),  # as authors() left it
        ("condition_embedder.image_embedder.norm2.", "img_emb.proj.4."),
        ("attn2.add_k_proj.", "cross_attn.k_img."),
        ("attn2.add_v_proj.", "cross_attn.v_img."),
        ("cross_attn.norm_added_k.", "cross_attn.norm_k_img."),
    )
    for old, new in hand:
        tensors = {name.replace(old, new): t for name, t in tensors.items()}
    path = write(tmp_path, tensors)
    made.save_config(tmp_path)
    same(single.load_single_file(made.__class__, path, model="i2v", config={}, unseen="",
                                 dtype=torch.float32), made.state_dict())  # fmt: skip


def test_rows_of_hunyuanvideo_at_its_own_width():
    """Fused layers of the authors, with two columns: diffusers' converter knows one width only."""
    model = get_model("hunyuanvideo")
    names = ("double_blocks.0.img_attn_qkv.weight", "single_blocks.0.linear1.weight",
             "final_layer.adaLN_modulation.1.weight")  # fmt: skip
    tensors = {n: torch.arange(float(rows))[:, None].expand(-1, 2).contiguous()
               for n, rows in zip(names, (9216, 9216 + 12288, 6144), strict=True)}  # fmt: skip

    class File:
        origin = "file"

        def weights(self):
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}

    convert = authors_names.converter(model.diffusers_class(), File(), {}, model.config("full"))
    found = {name: tensor[:, 0] for name, tensor in convert(dict(tensors)).items()}
    one, two = "transformer_blocks.0.attn.to_", "single_transformer_blocks.0.attn.to_"
    for part, start in (("q", 0), ("k", 3072), ("v", 6144)):
        for block in (one, two):
            assert torch.equal(found[f"{block}{part}.weight"], torch.arange(3072.0) + start)
    mlp = found["single_transformer_blocks.0.proj_mlp.weight"]
    assert torch.equal(mlp, torch.arange(12288.0) + 9216)
    # Shift stands before scale in the authors' last modulation, behind it in diffusers'.
    assert torch.equal(found["norm_out.linear.weight"], torch.arange(6144.0).roll(3072))


@pytest.mark.parametrize("column", [0, 1], ids=["authors", "comfyui"])
def test_every_name_of_hunyuanvideo_has_its_place(column):
    """All of a file of the real size, by headers; its names as LoRA files have them."""
    model = get_model("hunyuanvideo")
    expected = single._registry_shapes(model.name)
    with torch.device("meta"):
        transformer = model.diffusers_class()(**model.config("full"))
    owners = list(dict.fromkeys(name.rpartition(".")[0] for name in expected))
    entries = list(lora_names._hunyuanvideo(transformer, owners))
    shapes = {}
    for name, places in entries[column::2]:
        for kind in ("weight", "bias"):
            parts = [expected.get(f"{place.owner}.{kind}") for place in places]
            if parts[0] is not None:
                fused = len({place.owner for place in places}) > 1
                rows = sum(part[0] for part in parts) if fused else parts[0][0]
                shapes[f"{name}.{kind}"] = (rows, *parts[0][1:])

    class File:
        origin = "file"

        def weights(self):
            return shapes

    convert = authors_names.converter(
        model.diffusers_class(), File(), expected, model.config("full")
    )
    found = authors_names.on_shapes(convert, File(), model.name)(shapes)
    check_shapes(found, expected, "file")
