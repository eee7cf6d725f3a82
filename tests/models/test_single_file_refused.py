"""Files that are no transformer of the model: told in one line by what they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.wan_authors import MODEL, authors, authors_name, load, mark, refused, same, write
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import get_model
from rainfusion_trt.models import single_file as single
from rainfusion_trt.models.authors_names import check_spellings, converter
from rainfusion_trt.models.wan import Wan
from rainfusion_trt.models.weight_files import WeightFiles


@pytest.fixture(scope="module")
def original():
    return MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32, seed=5)


@pytest.mark.parametrize(
    ("held", "asked"),
    [("cogvideox-2b", "wan2.1-1.3b"), ("cogvideox-2b", "cogvideox-5b"), ("wan2.1-1.3b", "allegro")],
)
def test_a_file_of_another_model_is_told_by_its_name(tmp_path, held, asked):
    """By headers of the real shapes, as no weight is read."""
    shapes = single._registry_shapes(held)
    names = authors_name if held.startswith("wan") else str
    path = header_only(tmp_path / "file.safetensors", {names(n): s for n, s in shapes.items()})
    (tmp_path / "config.json").write_text('{"_class_name": "AllegroTransformer3DModel"}')
    refused(path, InvalidInputError, f"holds the weights of (.* or )?{held}.*, not of {asked}",
            model=get_model(asked))  # fmt: skip


def header_only(path: Path, shapes) -> Path:
    """A sparse file: the header says bfloat16 of these shapes, and nothing of it is on the disk."""
    entries, end = {}, 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + end)
    return path


def lora(tensors):
    return {f"lora_unet_{n.replace('.', '_')}.lora_down.weight": t for n, t in tensors.items()}


def peft(tensors):
    return {f"diffusion_model.{n}.lora_A.weight": t for n, t in tensors.items()}


def both(tensors):
    return {f"{e}_noise_model.{n}": t.clone() for e in ("high", "low") for n, t in tensors.items()}


def both_of_diffusers(tensors):
    return {f"{e}.{n}": t.clone() for e in ("transformer", "transformer_2")
            for n, t in tensors.items()}  # fmt: skip


def with_and_without_prefix(tensors):
    average = {n: t + 1 for n, t in tensors.items()}
    return {**authors(tensors, "model.diffusion_model."), **authors(average)}


def also(name, of):
    def change(tensors):
        return {**authors(tensors), name: tensors[of] + 1}

    change.__name__ = f"also {name}"
    return change


TO_Q = "blocks.0.attn1.to_q.weight"


def one_lost(tensors):
    return {n: t for n, t in authors(tensors).items() if n != "blocks.0.self_attn.q.weight"}


def one_more(tensors):
    return {**authors(tensors), "vace_blocks.0.after_proj.weight": torch.ones(2, 2)}


def strange(tensors):
    return {f"layers.{i}.weight": t for i, t in enumerate(tensors.values())}


def beside(suffix, kind=torch.float32):
    def change(tensors):
        name = f"blocks.0.self_attn.q.{suffix}"
        return {**authors(tensors), name: torch.ones(256).to(kind)}

    return change


def infinite_scale(tensors):
    tensors = beside("weight_scale")(tensors)
    tensors["blocks.0.self_attn.q.weight_scale"][3] = float("inf")
    name = "blocks.0.self_attn.q.weight"
    return {**tensors, name: tensors[name].to(torch.float8_e4m3fn)}


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lora, InvalidInputError, "is a LoRA .*--lora"),
        (peft, InvalidInputError, "is a LoRA .*--lora"),
        (both, InvalidInputError, r"two transformers \(high_noise_model\., low_noise_model\."),
        (both_of_diffusers, InvalidInputError, r"two transformers \(transformer_2\."),
        (with_and_without_prefix, InvalidInputError, r"two transformers \(model\.diffusion_model"),
        # Of which diffusers' converter takes one.
        (
            also(TO_Q, TO_Q),
            InvalidInputError,
            r"under two names, blocks\.0\.attn1\.to_q\.weight and blocks\.0\.self_attn\.q\.weight",
        ),
        (
            also(f"transformer.{TO_Q}", TO_Q),
            InvalidInputError,
            r"self_attn\.q\.weight and transformer\.blocks\.0\.attn1\.to_q\.weight: which is right",
        ),
        (also("scale_shift_table", "scale_shift_table"), InvalidInputError, "two names, head.mod"),
        (one_lost, InvalidInputError, r"lack blocks\.0\.attn1\.to_q\.weight"),
        (one_more, InvalidInputError, r"have, unknown to it, vace_blocks"),
        (strange, InvalidInputError, "does not fit"),
        (beside("weight.absmax"), UnsupportedError, "bitsandbytes"),
        (beside("qweight", torch.int32), UnsupportedError, "GPTQ or AWQ"),
        (beside("proj_down"), UnsupportedError, "SVDQuant"),
        (infinite_scale, InvalidInputError, "weight_scale is 0 or not finite"),
        (beside("weight_scale_2"), UnsupportedError, "NVFP4"),
        (beside("weight_scale", torch.uint8), UnsupportedError, "stored as U8, as MXFP8"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_no_transformer_of_this_model_is_named(original, tmp_path, change, error, match):
    refused(write(tmp_path, change(original.state_dict())), error, match)


@pytest.mark.parametrize(
    ("names", "both"),
    [
        # ComfyUI's beside the authors'; one of diffusers' beside what it is cut of.
        (("img_attn_qkv", "img_attn.qkv"), True),
        (("img_attn_qkv", "attn.to_k"), True),
        (("img_attn_qkv", "txt_attn_qkv"), False),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_two_names_of_hunyuanvideo(names, both, order):
    stored = [f"double_blocks.0.{name}.weight" for name in names][::order]
    shapes = {name: (12 if "qkv" in name else 4, 4) for name in stored}
    place = dict(zip(stored, (("f", f"model.{name}") for name in stored), strict=True))
    file = WeightFiles(Path("x"), ("f",), origin="x", shapes=shapes, places=place)
    convert = converter(get_model("hunyuanvideo").diffusers_class(), file, {}, {})
    if not both:
        check_spellings(convert, file)
        return
    with pytest.raises(InvalidInputError) as refusal:
        check_spellings(convert, file)
    assert all(f"model.{name}" in str(refusal.value) for name in stored)


def test_two_names_of_what_is_put_together_anew():
    stored = ("final_layer.adaLN_modulation.1.weight", "norm_out.linear.weight")
    file = WeightFiles(
        Path("x"),
        ("f",),
        shapes=dict.fromkeys(stored, (8, 4)),
        places={name: ("f", name) for name in stored},
    )
    convert = converter(get_model("hunyuanvideo").diffusers_class(), file, {}, {})
    with pytest.raises(InvalidInputError, match=" and ".join(map(re.escape, stored))):
        check_spellings(convert, file)


@pytest.mark.parametrize(
    ("said", "match"),
    [
        ({"format": "nvfp4"}, "quantised with nvfp4"),
        ({"format": "float8_e4m3fn", "rotation": 64}, "quantised with rotation"),
        ({"group": 3}, "mark .* cannot be read"),
    ],
)
def test_marks_of_comfyui_that_say_something_else_are_refused(original, tmp_path, said, match):
    """Beside weights whose shapes and types would pass, in a tensor or in the header."""
    tensors = authors(original.state_dict())
    name = "blocks.0.self_attn.q.weight"
    tensors[name] = tensors[name].to(torch.float8_e4m3fn)
    tensors[name.replace("weight", "weight_scale")] = torch.ones(())
    marked = {**tensors, name.replace("weight", "comfy_quant"): mark(**said)}
    refused(write(tmp_path, marked), UnsupportedError, match)
    header = json.dumps({"format_version": "1.0", "layers": {"blocks.0.self_attn.q": said}})
    path = write(tmp_path, tensors, _quantization_metadata=header)
    refused(path, UnsupportedError, match)


def test_expert_of_the_wrong_noise_is_refused_by_its_name(original, tmp_path):
    pair = Wan("pair", full=MODEL.config("tiny", layers=1), tiny=MODEL.configs["tiny"],
               defaults=MODEL.defaults, components=("transformer", "transformer_2"))  # fmt: skip
    path = write(tmp_path, authors(original.state_dict()), "wan2.2_t2v_low_noise_14B.safetensors")
    refused(path, InvalidInputError, "low noise by its name, which transformer_2 does", model=pair)
    same(load(path, model=pair, component="transformer_2"), original.state_dict())
    (tmp_path / "HighNoise").mkdir()
    path = write(tmp_path / "HighNoise", authors(original.state_dict()), "Q8.safetensors")
    refused(path, InvalidInputError, "high noise", model=pair, component="transformer_2")
    same(load(path, model=pair), original.state_dict())


def test_a_pickle_is_not_read(original, tmp_path):
    path = tmp_path / "wan.pth"
    torch.save(original.state_dict(), path)
    refused(path, UnsupportedError, "pickled ones can run code")


def test_models_whose_settings_shapes_do_not_show_need_their_configuration(tmp_path):
    model = get_model("opensoraplan-1.2")
    made = model.create(model.config("tiny", layers=1), dtype=torch.float32)
    path = tmp_path / "opensora.safetensors"
    save_file(made.state_dict(), path)
    refused(path, InvalidInputError, "do not show the scales .* put the config.json", model=model)
    made.save_config(tmp_path)
    same(load(path, model=model), made.state_dict())
    # diffusers converts no other names for this class.
    save_file({f"x.{n}": t for n, t in load_file(path).items()}, path)
    refused(path, InvalidInputError, "not diffusers', and diffusers converts no oth", model=model)


@pytest.mark.parametrize("length", [0, 5, 900, -100])
def test_a_truncated_file_is_named(original, tmp_path, length):
    path = write(tmp_path, authors(original.state_dict()))
    path.write_bytes(path.read_bytes()[:length])
    refused(path, InvalidInputError, "download them again")
