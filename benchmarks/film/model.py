"""A small CogVideoX transformer on latents of single frames, and a way into its attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from benchmarks.film.scene import Scene, Shape

CHANNELS = 32
TEXT_SIZE = 64
Rotary = tuple[Tensor, Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def build_model(scene: Scene, device: torch.device) -> CogVideoXTransformer3DModel:
    """A model whose modulations and output begin at zero."""
    frames, height, width = scene.grid
    model = CogVideoXTransformer3DModel(
        num_attention_heads=scene.heads,
        attention_head_dim=scene.head_size,
        num_layers=scene.layers,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        time_embed_dim=128,
        text_embed_dim=TEXT_SIZE,
        max_text_seq_length=scene.text,
        sample_frames=frames * 4 - 3,
        sample_height=height * 2,
        sample_width=width * 2,
        use_rotary_positional_embeddings=True,
    )
    zeroed = [model.proj_out, model.norm_out.linear]
    for block in model.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm2.linear]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model.to(device)


def rotary_of(scene: Scene, grid: Shape, device: torch.device) -> Rotary:
    """Rotary embedding of a token grid, spread over the scene's rows and columns."""
    extent = ((0, 0), scene.spread)
    cosine, sine = get_3d_rotary_pos_embed(
        scene.head_size, extent, grid[1:], grid[0], device=device
    )
    return cosine, sine


def velocity(model: nn.Module, x: Tensor, t: Tensor, text: Tensor, rotary: Rotary) -> Tensor:
    """The model's velocity at noisy latents [B, T, 32, h, w] and times [B] in [0, 1]."""
    return model(
        hidden_states=x,
        timestep=t * 1000,
        encoder_hidden_states=text,
        image_rotary_emb=rotary,
        return_dict=False,
    )[0]


class Attending(TorchFunctionMode):
    """While this is on, attention over ``tokens`` tokens of one sample goes through a function.

    Parameters
    ----------
    attention
        From queries, keys and values [N, S, D] to the output.
    """

    def __init__(self, attention: Attention, tokens: int):
        super().__init__()
        self.attention = attention
        self.tokens = tokens
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3] if len(args) >= 3 else (kwargs[n] for n in ("query", "key", "value"))
        if q.shape[0] != 1 or q.shape[2] != self.tokens:
            raise ValueError(f"attention of {tuple(q.shape)}, not of one sample of {self.tokens}")
        self.calls += 1
        return self.attention(q[0], k[0], v[0])[None]
