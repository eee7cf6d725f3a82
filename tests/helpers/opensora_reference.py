"""OpenSoraPlan v1.2's transformer, written down from its definition; float32, for tests.

Nothing of diffusers is in it, so that it says independently what an original checkpoint computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Mapping[str, Tensor]


def forward(config: Mapping[str, Any], weights: Weights, call: Mapping[str, Any]) -> Tensor:
    """The sample for hidden_states, encoder_hidden_states, encoder_attention_mask and timestep."""
    latents, heads = call["hidden_states"], config["num_attention_heads"]
    batch, _, frames, rows, columns = latents.shape
    grid = (frames, rows // 2, columns // 2)
    scales = [config[f"interpolation_scale_{axis}"] for axis in "thw"]
    angles = _angles(grid, scales, config["attention_head_dim"])

    stacked = latents.transpose(1, 2).flatten(0, 1)
    patches = F.conv2d(
        stacked, weights["pos_embed.proj.weight"], weights["pos_embed.proj.bias"], stride=2
    )
    x = patches.flatten(2).transpose(1, 2).reshape(batch, -1, patches.shape[1])
    hidden = F.gelu(
        _linear(weights, "caption_projection.linear_1", call["encoder_hidden_states"]),
        approximate="tanh",
    )
    text = _linear(weights, "caption_projection.linear_2", hidden)
    bias = (call["encoder_attention_mask"][:, None, None, :] - 1) * 10000.0

    embedder = "adaln_single.emb.timestep_embedder"
    time = _linear(weights, f"{embedder}.linear_1", _sinusoid(call["timestep"]))
    time = _linear(weights, f"{embedder}.linear_2", F.silu(time))
    modulation = _linear(weights, "adaln_single.linear", F.silu(time)).reshape(batch, 6, -1)

    for index in range(config["num_layers"]):
        block = {
            name.removeprefix(f"transformer_blocks.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"transformer_blocks.{index}.")
        }
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (block["scale_shift_table"] + modulation)[:, i, None] for i in range(6)
        )
        normed = _norm(x) * (1 + scale1) + shift1
        x = x + gate1 * _attention(block, "attn1", normed, normed, heads, angles=angles)
        x = x + _attention(block, "attn2", x, text, heads, bias=bias)
        hidden = _linear(block, "ff.net.0.proj", _norm(x) * (1 + scale2) + shift2)
        x = x + gate2 * _linear(block, "ff.net.2", F.gelu(hidden, approximate="tanh"))

    shift, scale = ((weights["scale_shift_table"] + time[:, None])[:, i, None] for i in range(2))
    x = _linear(weights, "proj_out", _norm(x) * (1 + scale) + shift)
    x = x.reshape(batch, *grid, 1, 2, 2, -1)
    return torch.einsum("nthwopqc->nctohpwq", x).reshape(batch, -1, frames, rows, columns)


def _attention(
    block: Weights,
    name: str,
    x: Tensor,
    context: Tensor,
    heads: int,
    *,
    angles: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    def split(projection: str, source: Tensor) -> Tensor:
        return _linear(block, f"{name}.{projection}", source).unflatten(-1, (heads, -1))

    q, k, v = split("to_q", x), split("to_k", context), split("to_v", context)
    if angles is not None:
        q, k = _rotate(q, angles), _rotate(k, angles)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    probabilities = (scores if bias is None else scores + bias).softmax(-1)
    values = torch.einsum("bhqk,bkhd->bqhd", probabilities, v).flatten(2)
    return _linear(block, f"{name}.to_out.0", values)


def _angles(grid: tuple[int, int, int], scales: list[float], head_size: int) -> Tensor:
    """[S, 3, D / 6]: position along t, y, x over its scale, times the frequencies."""
    third = head_size // 3
    frequencies = 10000.0 ** (-torch.arange(0, third, 2) / third)
    axes = [torch.arange(extent) / scale for extent, scale in zip(grid, scales, strict=True)]
    return torch.cartesian_prod(*axes)[..., None] * frequencies


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """[B, S, N, D]: each third of D as D / 6 complex numbers, real parts before imaginary ones."""
    real, imaginary = x.unflatten(-1, (3, 2, -1)).unbind(-2)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    parts = (real * cos - imaginary * sin, imaginary * cos + real * sin)
    return torch.stack(parts, dim=-2).flatten(-3)


def _sinusoid(timestep: Tensor) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(128) / 128)
    angles = timestep[:, None].float() * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
