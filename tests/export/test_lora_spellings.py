"""What trainers write: every spelling against W + scale * (alpha / rank) * B A computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import fuse_loras
from rainfusion_trt.models import get_model

RANK = 3
SCALE = 0.75


class Subject:
    """A tiny transformer, its weights before, and a file that is made for it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.model = get_model(name)
        config = self.model.config("tiny", layers=1)
        self.transformer = self.model.create(config, dtype=torch.float32, seed=3)
        self.expected = {n: t.clone() for n, t in self.transformer.state_dict().items()}
        self.before = {n: t.clone() for n, t in self.expected.items()}
        self.file = folder / "style.safetensors"
        self.tensors: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(1)

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator) / shape[-1] ** 0.5

    def change(self, *names: str, by: Tensor, kind: str = "weight") -> None:
        """Rows of `by`, in order, onto the named layers."""
        parts = by.split([self.before[f"{name}.{kind}"].shape[0] for name in names])
        for name, part in zip(names, parts, strict=True):
            self.expected[f"{name}.{kind}"] += SCALE * part

    def low_rank(
        self, key: str, *names: str, spelling=("lora_down", "lora_up"), alpha: float | None = None
    ) -> None:
        """One layer of the file, which is these layers of the transformer."""
        rows = sum(self.before[f"{name}.weight"].shape[0] for name in names)
        down = self.random(RANK, self.before[f"{names[0]}.weight"].shape[1])
        up = self.random(rows, RANK)
        self.tensors[f"{key}.{spelling[0]}.weight"] = down
        self.tensors[f"{key}.{spelling[1]}.weight"] = up
        if alpha is not None:
            self.tensors[f"{key}.alpha"] = torch.tensor(alpha)
        factor = 1.0 if alpha is None else alpha / RANK
        self.change(*names, by=factor * (up.double() @ down.double()).float())

    def fuse(self):
        save_file(self.tensors, self.file)
        return fuse_loras(self.model, self.transformer, [f"{self.file}:{SCALE}"])

    def check(self) -> None:
        (fused,) = self.fuse()
        actual = self.transformer.state_dict()
        changed = 0
        for name, expected in self.expected.items():
            error = (actual[name] - expected).abs().max() / expected.abs().max()
            assert error < 1e-6, name
            changed += not torch.equal(expected, self.before[name])
        assert changed >= fused.layers > 0


@pytest.fixture
def subject(tmp_path):
    return lambda name: Subject(name, tmp_path)


DOUBLE, SINGLE = "transformer_blocks.0", "single_transformer_blocks.0"
REFINER = "context_embedder.token_refiner.refiner_blocks.0"
# Original name, ComfyUI's name, layers in diffusers in the order of the rows.
HUNYUAN = [
    (
        "double_blocks.0.img_attn_qkv",
        "double_blocks.0.img_attn.qkv",
        *(f"{DOUBLE}.attn.to_{x}" for x in "qkv"),
    ),
    (
        "double_blocks.0.txt_attn_qkv",
        "double_blocks.0.txt_attn.qkv",
        *(f"{DOUBLE}.attn.add_{x}_proj" for x in "qkv"),
    ),
    (
        "double_blocks.0.img_attn_proj",
        "double_blocks.0.img_attn.proj",
        f"{DOUBLE}.attn.to_out.0",
    ),
    ("double_blocks.0.txt_attn_proj", "double_blocks.0.txt_attn.proj", f"{DOUBLE}.attn.to_add_out"),
    ("double_blocks.0.img_mod.linear", "double_blocks.0.img_mod.lin", f"{DOUBLE}.norm1.linear"),
    (
        "double_blocks.0.txt_mod.linear",
        "double_blocks.0.txt_mod.lin",
        f"{DOUBLE}.norm1_context.linear",
    ),
    ("double_blocks.0.img_mlp.fc1", "double_blocks.0.img_mlp.0", f"{DOUBLE}.ff.net.0.proj"),
    ("double_blocks.0.txt_mlp.fc2", "double_blocks.0.txt_mlp.2", f"{DOUBLE}.ff_context.net.2"),
    (
        "single_blocks.0.linear1",
        "single_blocks.0.linear1",
        *(f"{SINGLE}.attn.to_{x}" for x in "qkv"),
        f"{SINGLE}.proj_mlp",
    ),
    ("single_blocks.0.linear2", "single_blocks.0.linear2", f"{SINGLE}.proj_out"),
    (
        "single_blocks.0.modulation.linear",
        "single_blocks.0.modulation.lin",
        f"{SINGLE}.norm.linear",
    ),
    (
        "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
        "txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
        *(f"{REFINER}.attn.to_{x}" for x in "qkv"),
    ),
    (
        "txt_in.individual_token_refiner.blocks.0.self_attn_proj",
        "txt_in.individual_token_refiner.blocks.0.self_attn.proj",
        f"{REFINER}.attn.to_out.0",
    ),
    (
        "txt_in.individual_token_refiner.blocks.0.mlp.fc1",
        "txt_in.individual_token_refiner.blocks.0.mlp.0",
        f"{REFINER}.ff.net.0.proj",
    ),
    (
        "txt_in.c_embedder.linear_1",
        "txt_in.c_embedder.in_layer",
        "context_embedder.time_text_embed.text_embedder.linear_1",
    ),
    ("txt_in.input_embedder", "txt_in.input_embedder", "context_embedder.proj_in"),
    ("time_in.mlp.0", "time_in.in_layer", "time_text_embed.timestep_embedder.linear_1"),
    ("guidance_in.mlp.2", "guidance_in.out_layer", "time_text_embed.guidance_embedder.linear_2"),
    ("vector_in.in_layer", "vector_in.in_layer", "time_text_embed.text_embedder.linear_1"),
    ("final_layer.linear", "final_layer.linear", "proj_out"),
]
WAN = [
    ("blocks.0.self_attn.q", "blocks.0.attn1.to_q"),
    ("blocks.0.self_attn.v", "blocks.0.attn1.to_v"),
    ("blocks.0.cross_attn.o", "blocks.0.attn2.to_out.0"),
    ("blocks.0.ffn.0", "blocks.0.ffn.net.0.proj"),
    ("blocks.0.ffn.2", "blocks.0.ffn.net.2"),
    ("time_embedding.0", "condition_embedder.time_embedder.linear_1"),
    ("text_embedding.2", "condition_embedder.text_embedder.linear_2"),
    ("time_projection.1", "condition_embedder.time_proj"),
    ("head.head", "proj_out"),
]


def flat(key: str) -> str:
    return "lora_unet_" + key.replace(".", "_")


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


# -- refused ---------------------------------------------------------------------------------------

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
