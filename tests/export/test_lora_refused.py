"""LoRA files that are refused: by the name of what they are, and nothing is changed."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from helpers.lora_subject import RANK, SCALE, Subject
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import fuse_loras

Q = "blocks.0.attn1.to_q"


def good(one: Subject) -> None:
    one.low_rank(Q, Q, spelling=("lora_A", "lora_B"))


@pytest.mark.parametrize(
    ("key", "shape", "error", "match"),
    [
        (f"{Q}.dora_scale", (256,), UnsupportedError, "DoRA"),
        (f"{Q}.lora_magnitude_vector", (256,), UnsupportedError, "DoRA"),
        (f"{Q}.lora_mid.weight", (3, 3), UnsupportedError, "Tucker decomposition"),
        (f"{Q}.oft_blocks", (4, 4, 4), UnsupportedError, "a OFT|an OFT"),
        (f"{Q}.a1.weight", (4, 4), UnsupportedError, "GLoRA"),
        (f"{Q}.diff", (256, 256), InvalidInputError, "several forms"),
        (f"{Q}.lokr_w1", (2, 2), InvalidInputError, "several forms"),
        ("blocks.0.norm2.diff", (7,), InvalidInputError, r"shape \[7\], which do not fit"),
        ("blocks.0.attn1.to_k.lokr_w1", (2, 2), InvalidInputError, "no .*lokr_w2_a: incomplete"),
        ("blocks.0.attn1.to_k.hada_w1_a", (2, 2), InvalidInputError, "no .*hada_w1_b: incomplete"),
        ("blocks.0.attn1.norm_q.diff_b", (256,), InvalidInputError, "the bias of .* has none here"),
        ("blocks.0.attn1.to_k.alpha", (2,), InvalidInputError, "alpha has 2 values"),
        (
            "blocks.0.cross_attn.k_img.lora_A.weight",
            (3, 4),
            InvalidInputError,
            "fit no layer.*k_img",
        ),
        ("lora_te_text_model_encoder.lora_down.weight", (3, 4), InvalidInputError, "lora_te_text"),
        (
            f"transformer.{Q}.lora_A.weight",
            (3, 256),
            InvalidInputError,
            "two tensors for one place",
        ),
        (f"{Q}.lora_A.other.weight", (3, 256), InvalidInputError, "two tensors for one"),
        # By another name of the same layer, each of which alone would be right.
        ("blocks.0.self_attn.q.diff", (256, 256), InvalidInputError, r"changes .*weight twice, by"),
        ("lora_unet_blocks_0_self_attn_q.diff", (256, 256), InvalidInputError, "twice, by .* and"),
        ("blocks.0.attn1.to_k.lora_A.weight", (0, 256), InvalidInputError, "has no values"),
        ("blocks.0.attn1.to_k.lokr_w1_a", (16, 0), InvalidInputError, "has no values"),
    ],
)
def test_one_tensor_that_has_no_place_is_named(subject, key, shape, error, match):
    one = subject("wan2.1-1.3b")
    good(one)
    one.tensors[key] = torch.ones(shape)
    with pytest.raises(error, match=match) as caught:
        one.fuse()
    assert "\n" not in str(caught.value)
    torch.testing.assert_close(one.transformer.state_dict(), one.before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "prefixes",
    [
        ("transformer.", "transformer_2."),
        ("diffusion_model.high_noise.", "diffusion_model.low_noise."),
        ("lora_unet_high_noise_", "lora_unet_low_noise_"),
        ("pipe.dit.", "pipe.dit2."),
        ("transformer_2.",),
    ],
    ids=lambda prefixes: prefixes[-1],
)
def test_layers_of_two_transformers_are_named(subject, prefixes):
    """All of them, or a half of it, would be fused into the one that is exported."""
    one = subject("wan2.2-a14b")
    for prefix in prefixes:
        one.low_rank(prefix + "blocks.0.self_attn.q", Q)
    with pytest.raises(UnsupportedError, match=f"two transformers .*{prefixes[-1]}.*--component"):
        one.fuse()
    torch.testing.assert_close(one.transformer.state_dict(), one.before, rtol=0, atol=0)


def test_names_of_an_unknown_original_are_named(subject):
    one = subject("cogvideox-2b")
    one.tensors["model.diffusion_model.transformer.layers.0.attention.lora_A.weight"] = torch.ones(
        1, 1
    )
    with pytest.raises(InvalidInputError, match=r"matches no layer .*'layers\.0\.attention"):
        one.fuse()


def test_integers_are_quantised(subject):
    one = subject("wan2.1-1.3b")
    good(one)
    one.tensors[f"{Q}.lora_A.weight"] = torch.ones(RANK, 256, dtype=torch.int8)
    with pytest.raises(UnsupportedError, match=r"quantised: .*to_q\.lora_A\.weight is int8"):
        one.fuse()


@pytest.mark.parametrize(
    ("config", "error", "match"),
    [
        (
            '{"peft_type": "LOKR", "alpha": 2}',
            UnsupportedError,
            "LOKR .adapter_config.json says",
        ),
        ('{"use_dora": true}', UnsupportedError, "DoRA"),
        ('{"lora_alpha": "much"}', InvalidInputError, "alpha 'much'"),
        ("[", InvalidInputError, "no configuration of an adapter"),
        ("[]", InvalidInputError, "no configuration of an adapter"),
        ('{"alpha_pattern": [1]}', InvalidInputError, "alpha_pattern .1., expected regular"),
        ('{"alpha_pattern": {"(": 2}}', InvalidInputError, "alpha_pattern .*expected regular"),
    ],
)
def test_a_configuration_of_peft_that_says_something_else(subject, tmp_path, config, error, match):
    one = subject("wan2.1-1.3b")
    good(one)
    one.file = tmp_path / "adapter_model.safetensors"
    (tmp_path / "adapter_config.json").write_text(config)
    with pytest.raises(error, match=match):
        one.fuse()


def test_what_overflows_the_weights_is_refused(subject):
    one = subject("wan2.1-1.3b")
    good(one)
    save_file({name: t * 1e4 for name, t in one.tensors.items()}, one.file)
    half = one.model.create(one.model.config("tiny", layers=1), dtype=torch.float16, seed=3)
    with pytest.raises(InvalidInputError, match=r"to_q\.weight not finite in float16"):
        fuse_loras(one.model, half, [one.file])


def test_rows_of_one_layer_by_the_names_of_two(subject):
    """HunyuanVideo's own code has q, k and v in one layer, of which diffusers' to_q is a part."""
    one = subject("hunyuanvideo")
    name = "transformer_blocks.0.attn.to_{}"
    one.low_rank("double_blocks.0.img_attn_qkv", *(name.format(x) for x in "qkv"))
    one.low_rank(name.format("v"), name.format("v"))
    with pytest.raises(InvalidInputError, match=r"to_v\.weight twice, by double_blocks.* and"):
        one.fuse()
    torch.testing.assert_close(one.transformer.state_dict(), one.before, rtol=0, atol=0)


def test_the_same_lora_twice(subject, tmp_path):
    """Given twice, by another name too, or fused again as a notebook's cell that is run twice."""
    one = subject("wan2.1-1.3b")
    good(one)
    one.check()
    copied = tmp_path / "copy.safetensors"
    copied.write_bytes(one.file.read_bytes())
    other = subject("wan2.1-1.3b")
    same = f"{copied}:{SCALE}"
    for transformer, files in ((one.transformer, [same]), (other.transformer, [one.file] * 2)):
        before = {name: t.clone() for name, t in transformer.state_dict().items()}
        with pytest.raises(InvalidInputError, match="given twice or fused already"):
            fuse_loras(one.model, transformer, files)
        torch.testing.assert_close(transformer.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("lost", ["alpha", "lora_B.weight"])
def test_a_lora_that_changes_nothing(subject, lost):
    one = subject("wan2.1-1.3b")
    one.low_rank(Q, Q, spelling=("lora_A", "lora_B"), alpha=2.0)
    one.tensors[f"{Q}.{lost}"] *= 0
    with pytest.raises(InvalidInputError, match="changes no weight"):
        one.fuse()


def test_a_complex_alpha(subject):
    one = subject("wan2.1-1.3b")
    good(one)
    one.tensors[f"{Q}.alpha"] = torch.tensor(1j)
    with pytest.raises(InvalidInputError, match="alpha is complex64, expected a number"):
        one.fuse()
