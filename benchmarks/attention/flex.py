"""FlexAttention on lists of 128 x 128 blocks, those of `flex_lists`.

Text and video are cut into blocks separately, so that the last block of each may be short;
FlexAttention's own blocks lie on one grid. It is therefore given copies of q, k and v in which
every block begins at a multiple of 128, made before anything is timed. Then each block of a list is
one of its own: whole ones are passed as full blocks, which need no mask, short ones as partial
blocks whose mask leaves out the padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from rainfusion_trt.operator.geometry import TokenLayout

Attention = Callable[..., Tensor]
BLOCK = 128
"""Tokens in a query block and in a key block: FlexAttention's default, and fast in its kernel.

Its blocks have to be multiples of its kernel's tiles, whose sizes are powers of two; 96 or 80 keys
are multiples of no more than 32 or 16.
"""


class BlockGrid:
    """Tokens moved so that every block of a layout starts at a multiple of 128.

    Attributes
    ----------
    positions
        int64 [S], where each token goes.
    tokens
        Length of the padded sequence.
    """

    def __init__(self, layout: TokenLayout, device: torch.device) -> None:
        blocks = layout.blocks(BLOCK)
        lengths = torch.tensor([block.end - block.begin for block in blocks])
        starts = torch.arange(len(blocks)) * BLOCK
        offsets = torch.cat([torch.arange(int(length)) for length in lengths])
        self.positions = (starts.repeat_interleave(lengths) + offsets).to(device)
        self.tokens = len(blocks) * BLOCK
        self._short = (lengths < BLOCK).to(device)
        real = torch.zeros(self.tokens, dtype=torch.bool, device=device)
        real[self.positions] = True

        # One function for all masks of the grid, so that the kernel is compiled once.
        def is_real(b: Tensor, h: Tensor, q: Tensor, kv: Tensor) -> Tensor:
            return real[kv]

        self._is_real = is_real

    def pad(self, x: Tensor) -> Tensor:
        """[B, N, S, D] -> [B, N, tokens, D], zeros between."""
        out = x.new_zeros(*x.shape[:2], self.tokens, x.shape[3])
        return out.index_copy_(2, self.positions, x)

    def block_mask(self, kept: Tensor) -> BlockMask:
        """Make the mask that FlexAttention takes.

        Parameters
        ----------
        kept
            bool [B, N, blocks, blocks], query blocks by key blocks in memory order.
        """
        return BlockMask.from_kv_blocks(
            *_ordered(kept & self._short),
            *_ordered(kept & ~self._short),
            BLOCK_SIZE=BLOCK,
            mask_mod=self._is_real,
            seq_lengths=(self.tokens, self.tokens),
        )


def compiled_flex() -> Attention:
    """FlexAttention as its kernel; recompiling or running without it is an error."""
    torch.compiler.reset()
    return torch.compile(flex_attention, fullgraph=True, dynamic=False)


def _ordered(kept: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of kept blocks [B, N, blocks] and their indices, ascending, before the others."""
    order = kept.byte().argsort(dim=-1, descending=True, stable=True)
    return kept.sum(-1, dtype=torch.int32), order.int()
