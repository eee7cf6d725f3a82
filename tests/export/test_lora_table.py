"""docs/models.md: the table of LoRA files says what is read and refused, and each row is tested."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from helpers.lora_subject import HUNYUAN, RANK, SCALE, WAN, Subject, flat
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.export import request
from rainfusion_trt.export.lora_file import LoraFile

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
WAN_MODEL, HUNYUAN_MODEL = "wan2.1-1.3b", "hunyuanvideo"
PEFT = ("lora_A", "lora_B")
Q = WAN[0]


def rows(heading: str) -> list[str]:
    """First cells of the table under a heading's first column."""
    section = DOCUMENT.read_text(encoding="utf-8").split("\n## LoRA\n")[1].split("\n## ")[0]
    table = section.split(f"| {heading} |")[1].split("\n\n")[0]
    return re.findall(r"^\| ([^|-][^|]*?) \|", table.split("\n", 2)[2], re.MULTILINE)


# -- read: a file of every row is W + scale * change -----------------------------------------------


def kohya(one: Subject) -> None:
    for key, name in WAN:
        one.low_rank(flat(key), name, alpha=4.0)


def musubi_hunyuan(one: Subject) -> None:
    for key, _, *names in HUNYUAN:
        one.low_rank(flat(key), *names, alpha=1.0)


def diffusion_pipe(one: Subject) -> None:
    for key, name in WAN:
        one.low_rank(f"diffusion_model.{key}", name, spelling=PEFT)


def diffsynth(one: Subject) -> None:
    default = tuple(f"{part}.default" for part in PEFT)
    one.low_rank(Q[0], Q[1], spelling=default)
    one.low_rank(f"pipe.dit.{WAN[1][0]}", WAN[1][1], spelling=default)


def peft(one: Subject) -> None:
    folder = one.file.parent / "adapter"
    folder.mkdir()
    one.file = folder / "adapter_model.safetensors"
    (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": 2 * RANK, "r": RANK}))
    one.low_rank(f"base_model.model.{Q[1]}", Q[1], spelling=PEFT)
    one.change(Q[1], by=(one.expected[f"{Q[1]}.weight"] - one.before[f"{Q[1]}.weight"]) / SCALE)


def diffusers(one: Subject) -> None:
    one.low_rank(f"transformer.{Q[1]}", Q[1], spelling=PEFT)
    one.low_rank(f"transformer.{WAN[1][1]}", WAN[1][1], spelling=("lora.down", "lora.up"))


def ai_toolkit(one: Subject) -> None:
    one.low_rank(f"diffusion_model.{Q[1]}", Q[1], spelling=PEFT)


def one_trainer(one: Subject) -> None:
    one.low_rank(f"transformer.{Q[1]}", Q[1], alpha=1.0)
    one.low_rank(f"lora_transformer_{WAN[1][1].replace('.', '_')}", WAN[1][1], alpha=1.0)


def comfyui(one: Subject) -> None:
    for _, key, *names in HUNYUAN:
        one.low_rank(f"diffusion_model.{key}", *names, alpha=2.0)


def distilled(one: Subject) -> None:
    """Low rank with alpha, whole norms and biases: all of it by the strength that was given."""
    one.low_rank(f"diffusion_model.{Q[0]}", Q[1], alpha=8.0)
    for key, parameter in (
        ("self_attn.q.diff_b", f"{Q[1]}.bias"),
        ("norm3.diff", "blocks.0.norm2.weight"),
        ("modulation.diff", "blocks.0.scale_shift_table"),
    ):
        values = one.random(*one.before[parameter].shape)
        one.tensors[f"diffusion_model.blocks.0.{key}"] = values
        one.expected[parameter] += SCALE * values


def lycoris(one: Subject) -> None:
    first, second = one.random(16, 16), one.random(16, 16)
    one.tensors |= {f"lycoris_blocks_0_self_attn_q.lokr_w{i}": w
                    for i, w in ((1, first), (2, second))}  # fmt: skip
    one.change(Q[1], by=torch.kron(first, second))
    factors = [one.random(*shape) for shape in ((256, RANK), (RANK, 256)) * 2]
    for name, factor in zip(("w1_a", "w1_b", "w2_a", "w2_b"), factors, strict=True):
        one.tensors[f"lycoris_blocks_0_self_attn_v.hada_{name}"] = factor
    a, b, c, d = factors
    one.change(WAN[1][1], by=(a @ b) * (c @ d))


def float8(one: Subject) -> None:
    down, up = (one.random(*s).to(torch.float8_e4m3fn) for s in ((RANK, 256), (256, RANK)))
    one.tensors = {f"{Q[0]}.lora_down.weight": down, f"{Q[0]}.lora_up.weight": up}
    one.change(Q[1], by=up.float() @ down.float())


READ: dict[str, tuple[str, Callable[[Subject], None]]] = {
    "kohya, musubi: Wan": (WAN_MODEL, kohya),
    "kohya, musubi: HunyuanVideo": (HUNYUAN_MODEL, musubi_hunyuan),
    "diffusion-pipe": (WAN_MODEL, diffusion_pipe),
    "DiffSynth": (WAN_MODEL, diffsynth),
    "peft": (WAN_MODEL, peft),
    "diffusers": (WAN_MODEL, diffusers),
    "ai-toolkit": (WAN_MODEL, ai_toolkit),
    "OneTrainer": (WAN_MODEL, one_trainer),
    "ComfyUI: HunyuanVideo": (HUNYUAN_MODEL, comfyui),
    "distilled (Lightning, lightx2v, CausVid)": (WAN_MODEL, distilled),
    "LyCORIS": (WAN_MODEL, lycoris),
    "float8": (WAN_MODEL, float8),
}


@pytest.mark.parametrize("row", READ)
def test_read(subject, row):
    name, make = READ[row]
    one = subject(name)
    make(one)
    one.check()


# -- refused: a file of every row, and words of the message ----------------------------------------


def beside(key: str, *shape: int, kind: torch.dtype = torch.float32) -> Callable[[Subject], None]:
    """A good layer, and this tensor."""

    def make(one: Subject) -> None:
        one.low_rank(Q[0], Q[1])
        one.tensors[key] = torch.ones(shape).to(kind)

    return make


def two_transformers(one: Subject) -> None:
    one.low_rank(f"transformer.{Q[1]}", Q[1])
    one.low_rank(f"transformer_2.{Q[1]}", Q[1])


def another_model(one: Subject) -> None:
    one.tensors["diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"] = torch.ones(2, 2)


def no_change(one: Subject) -> None:
    one.low_rank(Q[0], Q[1], alpha=0.0)


K = "blocks.0.self_attn.k"
REFUSED: dict[str, tuple[Callable[[Subject], None], str]] = {
    "DoRA": (beside(f"{K}.dora_scale", 256), "is a DoRA"),
    "LoRA with a Tucker decomposition": (beside(f"{K}.lora_mid.weight", 3, 3), "Tucker"),
    "OFT, BOFT": (beside(f"{K}.oft_blocks", 4, 4, 4), "is a OFT"),
    "GLoRA": (beside(f"{K}.a1.weight", 4, 4), "is a GLoRA"),
    "IA3": (beside(f"{K}.on_input"), "is a IA3"),
    "VeRA": (beside(f"{K}.vera_lambda_b", 4), "is a VeRA"),
    "patches that replace weights": (beside(f"{K}.set_weight", 4, 4), "patch that replaces"),
    "integers": (beside(f"{K}.lora_A.weight", 3, 256, kind=torch.int8), "quantised: .* is int8"),
    "both transformers of Wan 2.2 in one file": (two_transformers, "of two transformers"),
    "another model": (another_model, "matches no layer"),
    "layers that are not there": (beside("lora_te_text.lora_down.weight", 3, 4), "fit no layer"),
    "half a change": (beside(f"{K}.lora_A.weight", 3, 256), "no .*lora_B.weight: incomplete"),
    "one place twice": (beside(f"{Q[1]}.diff", 256, 256), "to_q.weight twice, by"),
    "no change at all": (no_change, "changes no weight"),
}


@pytest.mark.parametrize("row", REFUSED)
def test_refused(subject, row):
    make, message = REFUSED[row]
    one = subject(WAN_MODEL)
    make(one)
    with pytest.raises(RainFusionError, match=message) as caught:
        one.fuse()
    assert "\n" not in str(caught.value) and one.file.name in str(caught.value)
    torch.testing.assert_close(one.transformer.state_dict(), one.before, rtol=0, atol=0)


# -- the table -------------------------------------------------------------------------------------


def test_every_row_has_a_test_and_every_test_a_row():
    assert rows("read") == list(READ)
    assert rows("refused") == list(REFUSED)


# -- a pair for two transformers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "component"),
    [
        ("wan2.2_t2v_lightx2v_4steps_lora_v1.1_high_noise.safetensors", "transformer_2"),
        ("low_noise_model.safetensors", "transformer"),
    ],
)
def test_the_file_of_the_other_noise_is_refused_before_weights_are_made(tmp_path, file, component):
    save_file({"x": torch.ones(1)}, tmp_path / file)
    lora = LoraFile.parse(f"{tmp_path / file}:0.5")
    for given in ("transformer", "transformer_2"):
        weights = request.WeightRequest(
            None, (lora,), True, False, "tiny", None, 0, "cpu", component=given
        )
        arguments = ("wan2.2-a14b", weights, (None, None, None))
        options = {"batch": None, "dtype": None, "dynamic": False}
        if given == component:
            with pytest.raises(InvalidInputError, match="noise by its name, .* --component"):
                request.model_job(*arguments, **options)
        else:
            assert given in str(request.model_job(*arguments, **options).output)
