"""OpenSoraPlan checkpoints as their authors published them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from helpers.allegro_models import OPENSORA, call_of, forward, tiny
from helpers.opensora_reference import forward as original_forward
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import model_of

ORIGINAL_CONFIG = {
    "_class_name": "OpenSoraT2V",
    "_diffusers_version": "0.29.0",
    "num_attention_heads": 2,
    "attention_head_dim": 96,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "dropout": 0.0,
    "cross_attention_dim": 192,
    "attention_bias": True,
    "sample_size": [60, 80],
    "sample_size_t": 8,
    "patch_size": 2,
    "patch_size_t": 1,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_single",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "caption_channels": 32,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
    "interpolation_scale_t": 1.0,
    "attention_mode": "xformers",
    "downsampler": None,
    "use_rope": True,
}


def save_original(folder, weights, *, shards: int = 1, **changes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**ORIGINAL_CONFIG, **changes}))
    names = sorted(weights)
    for shard in range(shards):
        suffix = f"-{shard + 1:05}-of-{shards:05}" if shards > 1 else ""
        part = {name: weights[name] for name in names[shard::shards]}
        save_file(part, folder / f"diffusion_pytorch_model{suffix}.safetensors")
    return str(folder)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in tiny(seed=8).state_dict().items()}


@pytest.mark.parametrize("shards", [1, 2])
def test_original_checkpoint_computes_what_the_original_code_does(tmp_path, weights, shards):
    checkpoint = save_original(tmp_path, weights, shards=shards)
    transformer = OPENSORA.load(checkpoint, dtype=torch.float32)
    assert model_of(transformer) is OPENSORA and not transformer.training
    call = call_of(OPENSORA, transformer, OPENSORA.tiny_size)
    expected = original_forward(ORIGINAL_CONFIG, weights, call)
    # The same operations in float32: a few dozen rounding errors of 6e-8 at values near 4.
    torch.testing.assert_close(forward(transformer, call), expected, atol=2e-5, rtol=0)


def test_original_checkpoint_takes_the_dtype_and_keeps_its_scales(tmp_path, weights):
    scales = {"interpolation_scale_h": 1.5, "interpolation_scale_w": 2.0}
    checkpoint = save_original(tmp_path, weights, sample_size=[90, 160], **scales)
    transformer = OPENSORA.load(checkpoint, dtype=torch.bfloat16)
    assert {p.dtype for p in transformer.parameters()} == {torch.bfloat16}
    config = transformer.config
    assert (config.interpolation_scale_t, config.interpolation_scale_h) == (1.0, 1.5)
    assert (config.interpolation_scale_w, config.sample_width) == (2.0, 160)


@pytest.mark.parametrize(("frames", "expected"), [(24, 1.5), (29, 2.0), (1, 1.0)])
def test_scales_that_are_not_written_are_what_the_original_computes(
    tmp_path, weights, frames, expected
):
    scales = dict.fromkeys(f"interpolation_scale_{axis}" for axis in "thw")
    checkpoint = save_original(
        tmp_path, weights, sample_size=[90, 160], sample_size_t=frames, **scales
    )
    config = OPENSORA.load(checkpoint, dtype=torch.float32).config
    assert config.interpolation_scale_t == expected
    assert (config.interpolation_scale_h, config.interpolation_scale_w) == (3.0, 4.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"use_rope": False}, UnsupportedError, "use_rope is False.*ROPE-L/122"),
        ({"downsampler": "k333_s222"}, UnsupportedError, "downsampler is 'k333_s222'"),
        ({"patch_size_t": 2}, UnsupportedError, "patch_size_t is 2"),
        ({"sample_size": None, "norm_eps": None}, InvalidInputError, "norm_eps, sample_size"),
        ({"num_layers": 3}, InvalidInputError, "lack transformer_blocks.2.* and 20 more"),
        ({"num_layers": 1}, InvalidInputError, "unknown to it, transformer_blocks.1"),
        ({"caption_channels": 16}, InvalidInputError, r"\(192, 32\), expected \(192, 16\)"),
    ],
)
def test_original_checkpoints_that_do_not_fit(tmp_path, weights, changes, error, message):
    with pytest.raises(error, match=message):
        OPENSORA.load(save_original(tmp_path, weights, **changes), dtype=torch.float32)


def test_original_checkpoint_without_readable_weights(tmp_path, weights):
    checkpoint = save_original(tmp_path, weights)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InvalidInputError, match="cannot be read"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
    file.unlink()
    with pytest.raises(InvalidInputError, match=f"holds no {file.name}"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InvalidInputError, match="config.json is not a readable configuration"):
        OPENSORA.load(checkpoint, dtype=torch.float32)
