"""What trainers store of a layer: every form against the change of the weight by hand."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.lora_subject import HUNYUAN, RANK, SCALE


@pytest.mark.parametrize(
    "spelling",
    [
        ("lora_A", "lora_B"),
        ("lora_A.default", "lora_B.default"),
        ("lora_down", "lora_up"),
        ("lora.down", "lora.up"),
        ("lora_linear_layer.down", "lora_linear_layer.up"),
    ],
    ids=lambda spelling: spelling[0],
)
@pytest.mark.parametrize("alpha", [None, 6.0])
@pytest.mark.parametrize(
    "prefix", ["transformer.", "base_model.model.", "base_model.model.transformer.", ""]
)
def test_spellings_of_the_factors(subject, spelling, alpha, prefix):
    one = subject("cogvideox-2b")
    for layer in ("transformer_blocks.0.attn1.to_q", "proj_out"):
        one.low_rank(prefix + layer, layer, spelling=spelling, alpha=alpha)
    one.check()


def test_processors_of_early_diffusers(subject):
    one = subject("cogvideox-2b")
    for old, new in (("to_q_lora", "to_q"), ("to_out_lora", "to_out.0")):
        key = f"transformer.transformer_blocks.0.attn1.processor.{old}"
        one.low_rank(key, f"transformer_blocks.0.attn1.{new}", spelling=("down", "up"))
    one.check()


def test_ranks_may_differ_without_alpha(subject):
    """The scale is 1 in every layer, as with kohya, ComfyUI and diffusers."""
    one = subject("cogvideox-2b")
    one.low_rank("transformer.proj_out", "proj_out")
    layer = "transformer_blocks.0.attn1.to_q"
    down, up = one.random(7, 128), one.random(128, 7)
    one.tensors[f"transformer.{layer}.lora_down.weight"] = down
    one.tensors[f"transformer.{layer}.lora_up.weight"] = up
    one.change(layer, by=up @ down)
    one.check()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_what_it_says(subject, kind):
    one = subject("wan2.1-1.3b")
    layer = "blocks.0.attn1.to_q"
    down, up = one.random(RANK, 256).to(kind), one.random(256, RANK).to(kind)
    one.tensors = {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
    one.change(layer, by=up.float() @ down.float())
    one.check()


def test_biases_and_full_changes_are_added(subject):
    """diff and diff_b: of norms, of modulations, of a convolution, beside a low-rank change."""
    one = subject("wan2.1-1.3b")
    prefix = "diffusion_model."
    one.low_rank(f"{prefix}blocks.0.ffn.0", "blocks.0.ffn.net.0.proj", alpha=1.0)
    bias = one.random(96)
    one.tensors[f"{prefix}blocks.0.ffn.0.diff_b"] = bias
    one.change("blocks.0.ffn.net.0.proj", by=bias, kind="bias")
    for key, parameter in (
        ("blocks.0.norm3.diff", "blocks.0.norm2.weight"),
        ("blocks.0.norm3.diff_b", "blocks.0.norm2.bias"),
        ("blocks.0.self_attn.norm_q.diff", "blocks.0.attn1.norm_q.weight"),
        ("blocks.0.modulation.diff", "blocks.0.scale_shift_table"),
        ("head.modulation.diff", "scale_shift_table"),
        ("head.head.diff", "proj_out.weight"),
        ("patch_embedding.diff", "patch_embedding.weight"),
        ("time_projection.1.diff_b", "condition_embedder.time_proj.bias"),
    ):
        values = one.random(*one.before[parameter].shape)
        one.tensors[prefix + key] = values
        one.expected[parameter] += SCALE * values
    one.check()


def test_a_low_rank_bias_takes_the_scale_of_its_layer(subject):
    one = subject("cogvideox-2b")
    one.low_rank("transformer.proj_out", "proj_out", spelling=("lora_A", "lora_B"), alpha=6.0)
    bias = one.random(64)
    one.tensors["transformer.proj_out.lora_B.bias"] = bias
    one.change("proj_out", by=6.0 / RANK * bias, kind="bias")
    one.check()


def test_a_convolution(subject):
    one = subject("wan2.1-1.3b")
    down, up = one.random(RANK, 16, 1, 2, 2), one.random(256, RANK, 1, 1, 1)
    one.tensors["patch_embedding.lora_down.weight"] = down
    one.tensors["patch_embedding.lora_up.weight"] = up
    one.change("patch_embedding", by=torch.einsum("or...,rixyz->oixyz", up[..., 0, 0, 0], down))
    one.check()


@pytest.mark.parametrize("form", ["whole", "w2", "both"])
def test_lokr(subject, form):
    """alpha / rank counts only where a factor is a product, which is LyCORIS' rule."""
    one = subject("hunyuanvideo")
    key, names = "lora_unet_double_blocks_0_img_attn_qkv", [*HUNYUAN[0][2:]]
    first, second = one.random(12, 8), one.random(32, 16)
    one.tensors[f"{key}.alpha"] = torch.tensor(1.0)
    factor = 1.0 if form == "whole" else 1.0 / RANK
    if form == "both":
        a, b = one.random(12, RANK), one.random(RANK, 8)
        one.tensors |= {f"{key}.lokr_w1_a": a, f"{key}.lokr_w1_b": b}
        first = a @ b
    else:
        one.tensors[f"{key}.lokr_w1"] = first
    if form == "whole":
        one.tensors[f"{key}.lokr_w2"] = second
    else:
        a, b = one.random(32, RANK), one.random(RANK, 16)
        one.tensors |= {f"{key}.lokr_w2_a": a, f"{key}.lokr_w2_b": b}
        second = a @ b
    product = torch.einsum("ij,kl->ikjl", first, second).reshape(384, 128)
    one.change(*names, by=factor * product)
    one.check()


def test_loha(subject):
    one = subject("wan2.1-1.3b")
    factors = [one.random(*shape) for shape in ((256, RANK), (RANK, 256)) * 2]
    for name, factor in zip(("w1_a", "w1_b", "w2_a", "w2_b"), factors, strict=True):
        one.tensors[f"lycoris_blocks_0_attn1_to_k.hada_{name}"] = factor
    one.tensors["lycoris_blocks_0_attn1_to_k.alpha"] = torch.tensor(2.0)
    a, b, c, d = factors
    one.change("blocks.0.attn1.to_k", by=2.0 / RANK * (a @ b) * (c @ d))
    one.check()


@pytest.mark.parametrize("rslora", [False, True])
def test_pefts_own_patterns_count(subject, tmp_path, rslora):
    one = subject("cogvideox-2b")
    folder = tmp_path / "adapter"
    folder.mkdir()
    one.file = folder / "adapter_model.safetensors"
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "use_rslora": rslora}
    config["alpha_pattern"] = {"attn1.to_q": 5}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for layer, alpha in (("transformer_blocks.0.attn1.to_q", 5), ("proj_out", 2)):
        rows, columns = one.before[f"{layer}.weight"].shape
        down, up = one.random(RANK, columns), one.random(rows, RANK)
        one.tensors[f"base_model.model.{layer}.lora_A.weight"] = down
        one.tensors[f"base_model.model.{layer}.lora_B.weight"] = up
        one.change(layer, by=alpha / (RANK**0.5 if rslora else RANK) * (up @ down))
    one.check()


def test_weights_that_were_made_under_inference_mode(subject):
    with torch.inference_mode():
        one = subject("wan2.1-1.3b")
        one.low_rank("blocks.0.attn1.to_q", "blocks.0.attn1.to_q")
    one.check()
