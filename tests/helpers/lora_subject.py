"""A tiny transformer and a LoRA file for it, with W + scale * (alpha / rank) * B A by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

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
