"""Rotary tables of AllegroTransformer3DModel, one row per token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def scales_of(config: Mapping[str, Any]) -> tuple[float, float, float]:
    """Interpolation scales of t, h and w."""
    t, h, w = (config[f"interpolation_scale_{axis}"] for axis in "thw")
    return t, h, w


def rotary_tables(
    config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [T*H*W, D], a third of D for each of t, h and w."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    frames, height, width = grid
    *tables, _, _, _ = get_3d_rotary_pos_embed_allegro(
        embed_dim=config["attention_head_dim"],
        crops_coords=((0, 0), (height, width)),
        grid_size=(height, width),
        temporal_size=frames,
        interpolation_scale=scales_of(config),
        device=torch.device(device),
    )
    ranges = [torch.arange(extent, device=device) for extent in grid]
    return rows_of_tokens(tables, torch.cartesian_prod(*ranges).unbind(-1))


def rows_of_tokens(
    tables: Sequence[tuple[Tensor, Tensor]], positions: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """cos and sin, float32 [S, D], from (cos, sin) tables and positions [S] of t, h and w."""
    cos, sin = (
        torch.cat([table[i].float()[p] for table, p in zip(tables, positions, strict=True)], dim=-1)
        for i in range(2)
    )
    return cos, sin
