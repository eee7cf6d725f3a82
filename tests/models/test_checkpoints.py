"""Checkpoints on the disk: the right weights, or one line that says what is wrong with them."""

from __future__ import annotations

import copy
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import get_model

MODEL = get_model("wan2.1-1.3b")
FILE = "diffusion_pytorch_model.safetensors"
INDEX = f"{FILE}.index.json"


@pytest.fixture(scope="module")
def original():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)


@pytest.fixture
def folder(original, tmp_path) -> Path:
    original.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)


def load(folder: Path, dtype=torch.float32):
    return MODEL.load(str(folder), dtype=dtype)


def one_line(folder: Path, error, match: str) -> str:
    with pytest.raises(error, match=match) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- float8 ----------------------------------------------------------------------------------------


def matrices(tensors) -> list[str]:
    return [n for n, t in tensors.items() if n.startswith("blocks.") and t.dim() == 2]


def per_tensor(weight):
    scale = weight.abs().max() / 448
    return weight / scale, scale


def per_tensor_of_one(weight):
    scaled, scale = per_tensor(weight)
    return scaled, scale[None]


def per_row(weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    return weight / scale, scale


def per_row_flat(weight):
    scaled, scale = per_row(weight)
    return scaled, scale[:, 0]


def per_part(weight):
    """Parts of 32 columns, as musubi has them: [rows, parts, 1]."""
    parts = weight.unflatten(1, (-1, 32))
    scale = parts.abs().amax(2, keepdim=True) / 448
    return (parts / scale).flatten(1), scale


def scaled_float8(tensors, scheme, suffix="scale_weight", kind=torch.float8_e4m3fn) -> None:
    for name in matrices(tensors):
        scaled, scale = scheme(tensors[name] / 1700)  # far from 1, so that a lost scale shows
        tensors[name] = scaled.to(kind)
        tensors[name.replace("weight", suffix)] = scale.float().contiguous() * 1700


@pytest.mark.parametrize(
    "scheme",
    [per_tensor, per_tensor_of_one, per_row, per_row_flat, per_part],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_float8_is_multiplied_out(folder, original, scheme, suffix):
    rewrite(folder, lambda tensors: scaled_float8(tensors, scheme, suffix))
    loaded = load(folder).state_dict()
    expected = original.state_dict()
    for name in matrices(expected):
        # e4m3 has 3 bits behind the point: at most 1/16 off, a third of that on average.
        error = (loaded[name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.03, name
        stored = load_file(folder / FILE)
        scale = stored[name.replace("weight", suffix)]
        assert torch.allclose(loaded[name].abs().max(), expected[name].abs().max(), rtol=0.05)
        if scheme is per_tensor:
            assert torch.equal(loaded[name], stored[name].float() * scale)


def test_a_model_of_scaled_float8_computes_what_it_was_made_from(folder, original):
    inputs = MODEL.forward_kwargs(MODEL.example_inputs(original, MODEL.tiny_size, batch=1))
    rewrite(folder, lambda tensors: scaled_float8(tensors, per_row))
    stored = load_file(folder / FILE)
    by_hand = copy.deepcopy(original)
    for name in matrices(by_hand.state_dict()):
        weight, scale = stored[name].double(), stored[name.replace("weight", "scale_weight")]
        by_hand.get_parameter(name).data.copy_((weight * scale.double()).float())
    with torch.no_grad():
        ways = (original, by_hand, load(folder))
        first, exact, actual = (MODEL.eager(t, inputs)[0] for t in ways)
    assert (actual - exact).abs().max() / exact.abs().max() < 1e-6
    # What float8 itself costs, with every matrix of the block in it.
    assert (actual - first).abs().max() / first.abs().max() < 2e-2


def test_marks_of_comfyui_beside_scaled_float8_are_no_weights(folder, original):
    def change(tensors):
        scaled_float8(tensors, per_tensor)
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
        for name in matrices(tensors):
            tensors[name.replace("weight", "scale_input")] = torch.ones(())

    rewrite(folder, change)
    loaded = load(folder, torch.bfloat16)
    name = "blocks.0.attn1.to_q.weight"
    error = loaded.state_dict()[name].float() - original.state_dict()[name]
    assert error.norm() / original.state_dict()[name].norm() < 0.03
    assert loaded.dtype is torch.bfloat16


def test_plain_float8_is_what_it_says(folder):
    def change(tensors):
        for name in matrices(tensors):
            tensors[name] = tensors[name].to(torch.float8_e5m2)

    rewrite(folder, change)
    loaded = load(folder).state_dict()
    for name, tensor in load_file(folder / FILE).items():
        assert torch.equal(loaded[name], tensor.float())


def lose_a_scale(tensors):
    scaled_float8(tensors, per_tensor)
    del tensors["blocks.0.attn1.to_q.scale_weight"]


def scale_without_float8(tensors):
    scaled_float8(tensors, per_tensor)
    name = "blocks.0.attn1.to_q.weight"
    tensors[name] = tensors[name].bfloat16()


def strange_scale(tensors):
    scaled_float8(tensors, per_tensor)
    tensors["blocks.0.attn1.to_q.scale_weight"] = torch.ones(7)


def infinite_scale(tensors):
    scaled_float8(tensors, per_tensor)
    tensors["blocks.0.attn1.to_q.scale_weight"] = torch.tensor(float("inf"))


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lose_a_scale, InvalidInputError, r"none for blocks\.0\.attn1\.to_q\.weight"),
        (scale_without_float8, UnsupportedError, r"to_q\.weight, which is BF16 and not float8"),
        (strange_scale, UnsupportedError, r"scale_weight of shape \(7,\) .* of no known kind"),
        (infinite_scale, InvalidInputError, "0 or not finite"),
    ],
)
def test_scales_that_cannot_be_right_are_refused(folder, change, error, match):
    rewrite(folder, change)
    one_line(folder, error, match)


# -- quantised -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "gguf", "modelopt", "unheard-of"])
def test_a_quantised_configuration_is_named(folder, method):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    message = one_line(folder, UnsupportedError, f"quantised with {method}")
    assert "16- or 32-bit" in message


@pytest.mark.parametrize(
    ("names", "quantiser"),
    [
        (["blocks.0.attn1.to_q.weight.absmax"], "bitsandbytes"),
        (["blocks.0.attn1.to_q.weight.quant_state.bitsandbytes__nf4"], "bitsandbytes"),
        (["blocks.0.attn1.to_q.SCB"], "bitsandbytes"),
        (["blocks.0.attn1.to_q.weight_quantizer._amax"], "modelopt"),
        (["blocks.0.attn1.to_q.weight._data"], "quanto"),
        (["blocks.0.attn1.to_q._weight_qdata"], "torchao"),
        (["blocks.0.attn1.to_q.weight_scale_inv"], "scaled float8"),
    ],
)
def test_quantised_tensors_without_a_configuration_are_named(folder, names, quantiser):
    rewrite(folder, lambda tensors: tensors.update({n: torch.ones(1) for n in names}))
    assert names[0] in one_line(folder, UnsupportedError, f"is quantised .{quantiser}")


def test_integers_are_no_weights(folder):
    def change(tensors):
        name = "blocks.0.attn1.to_q.weight"
        tensors[name] = (tensors[name] * 50).to(torch.int8)

    rewrite(folder, change)
    one_line(folder, UnsupportedError, r"quantised: blocks\.0\.attn1\.to_q\.weight is stored as I8")


def test_a_folder_with_gguf_only_says_so(folder):
    (folder / FILE).rename(folder / "wan-Q4_K_M.gguf")
    one_line(folder, InvalidInputError, r"only wan-Q4_K_M\.gguf; give the file itself")


# -- tensors that are not the model's --------------------------------------------------------------


def remove(tensors):
    for name in ("blocks.0.attn1.to_q.weight", "proj_out.bias"):
        del tensors[name]


def add(tensors):
    tensors["control_blocks.0.proj_in.weight"] = torch.ones(2, 2)


def reshape(tensors):
    tensors["proj_out.weight"] = torch.ones(3, 256)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (remove, r"lack blocks\.0\.attn1\.to_q\.weight and 1 more"),
        (add, r"have, unknown to it, control_blocks\.0\.proj_in\.weight"),
        (reshape, r"proj_out\.weight has shape \(3, 256\), expected \(64, 256\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, change, match):
    rewrite(folder, change)
    one_line(folder, InvalidInputError, match)


def test_tensors_in_a_pickle_that_do_not_fit_are_named(folder):
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    assert torch.equal(load(folder).proj_out.bias, tensors["proj_out.bias"])
    remove(tensors)
    torch.save(tensors, folder / "diffusion_pytorch_model.bin")
    one_line(folder, InvalidInputError, r"lack (blocks\.0\.attn1\.to_q\.weight|proj_out\.bias) and")


def test_names_that_the_class_ignores_may_be_there(folder):
    rewrite(
        folder,
        lambda tensors: tensors.update({"blocks.0.attn2.norm_added_q.weight": torch.ones(1)}),
    )
    load(folder)


def test_wan_vace_is_not_its_text_to_video_model(tmp_path):
    from diffusers import WanVACETransformer3DModel

    config = {**MODEL.config("tiny", layers=2), "vace_layers": [0], "vace_in_channels": 96}
    WanVACETransformer3DModel(**config).save_pretrained(tmp_path)
    one_line(tmp_path, UnsupportedError, "is a WanVACETransformer3DModel, not a WanTransformer3D")
    content = json.loads((tmp_path / "config.json").read_text())
    del content["_class_name"]
    (tmp_path / "config.json").write_text(json.dumps(content))
    one_line(tmp_path, InvalidInputError, r"have, unknown to it, vace_")


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 5, 1000, -100])
def test_a_truncated_file_is_named(folder, length):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:length])
    assert "download them again" in one_line(folder, InvalidInputError, f"{FILE} cannot be read")


@pytest.mark.parametrize("sharded", [False, True])
def test_the_only_variant_is_read_and_the_log_says_so(original, tmp_path, caplog, sharded):
    size = "1MB" if sharded else "10GB"
    original.save_pretrained(tmp_path, variant="fp16", max_shard_size=size)
    assert not (tmp_path / FILE).exists() and not (tmp_path / INDEX).exists()
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == sharded
    with caplog.at_level(logging.INFO, logger="rainfusion_trt"):
        loaded = load(tmp_path)
    assert "fp16 variant" in caplog.text
    assert torch.equal(loaded.proj_out.weight, original.proj_out.weight)


def test_a_file_without_variant_goes_first_and_two_variants_are_refused(original, folder, caplog):
    (folder / FILE).rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    save_file(original.state_dict(), folder / "diffusion_pytorch_model.ema.safetensors")
    one_line(folder, InvalidInputError, "variants ema, fp16")
    save_file(original.state_dict(), folder / FILE)
    load(folder)
    assert "variant" not in caplog.text


def test_a_missing_shard_and_a_damaged_index_are_named(original, tmp_path):
    original.save_pretrained(tmp_path, max_shard_size="1MB")
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    last.rename(tmp_path / "away")
    one_line(tmp_path, InvalidInputError, f"{last.name} of {INDEX} is missing")
    (tmp_path / "away").rename(last)
    index = json.loads((tmp_path / INDEX).read_text())
    index["metadata"]["quantization"] = "modelopt"
    (tmp_path / INDEX).write_text(json.dumps(index))
    one_line(tmp_path, UnsupportedError, "index says quantization='modelopt'")
    (tmp_path / INDEX).write_text("[]")
    one_line(tmp_path, InvalidInputError, f"{INDEX} is no index")


def test_a_tensor_in_two_shards_is_named(original, tmp_path):
    """As shards of two downloads beside each other; the last one would count."""
    original.save_pretrained(tmp_path, max_shard_size="1MB")
    first, *_, last = sorted(tmp_path.glob("*.safetensors"))
    name, value = next(iter(load_file(first).items()))
    save_file({**load_file(last), name: value + 1}, last)
    one_line(tmp_path, InvalidInputError, f"{name} twice, in {first.name} and {last.name}")


def test_another_format_is_named(folder):
    (folder / FILE).rename(folder / "wan2.1_t2v_fp8_scaled.safetensors")
    message = one_line(folder, InvalidInputError, r"only wan2\.1_t2v_fp8_scaled\.safetensors")
    assert "give the file itself" in message


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"num_layers": "many"}', '{"attention_head_dim": -1}']
)
def test_a_configuration_that_makes_no_model_is_one_line(folder, content):
    (folder / "config.json").write_text(content)
    with pytest.raises((InvalidInputError, UnsupportedError)) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_a_repository_of_the_hub_is_checked_as_a_folder_is(original, tmp_path):
    """In the client's cache, without a network; in a process of its own, which reads its place."""
    revision = "0" * 40
    repository = tmp_path / "models--some--wan"
    folder = repository / "snapshots" / revision / "transformer"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    original.save_pretrained(folder)
    rewrite(folder, lambda tensors: scaled_float8(tensors, per_tensor))
    code = (
        "import torch; from rainfusion_trt.models import get_model\n"
        "loaded = get_model('wan2.1-1.3b').load('some/wan', dtype=torch.float32)\n"
        "print(float(loaded.blocks[0].attn1.to_q.weight.abs().max()))"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    largest = float(original.blocks[0].attn1.to_q.weight.abs().max())
    assert float(done.stdout) == pytest.approx(largest, rel=0.05)
