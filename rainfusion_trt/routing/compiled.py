"""Blocks of an enabled transformer through ``torch.compile``.

Blocks, and not the whole transformer: they all share one graph, so that compiling takes as long for
forty as for one, and what diffusers does around them (hooks of offloading and caches, branches on
values in HunyuanVideo-1.5) stays out of it. Classes for which diffusers lists no repeated blocks
have it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from rainfusion_trt.errors import UnsupportedError

if TYPE_CHECKING:
    from rainfusion_trt.routing.state import Routing


def compile_blocks(routing: Routing) -> tuple[nn.Module, ...]:
    """Compile the blocks that hold the self-attentions, as they are first called.

    Returns
    -------
    tuple of nn.Module
        The blocks, for `uncompile_blocks`; without those that are compiled already.

    Raises
    ------
    UnsupportedError
        The transformer has no attention modules of diffusers, which say what its blocks are.
    """
    if routing.by_tokens:
        raise UnsupportedError(
            f"{routing.kind} has no attention modules of diffusers, and what finds its attention "
            "by tokens cannot be compiled; leave out compile=True"
        )
    blocks = dict.fromkeys(site.block for site in routing.sites)
    chosen = tuple(block for block in blocks if block._compiled_call_impl is None)
    for block in chosen:
        block.compile()
    routing.compiled = chosen
    return chosen


def keep_order(routing: Routing) -> None:
    """Compile anew, so that operations stay in their order, what `compile_blocks` compiled.

    To save memory Inductor may put off what is sent until its tokens are waited for.
    """
    for block in routing.compiled:
        block.compile(options={"reorder_for_peak_memory": False})


def uncompile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Put back what `compile_blocks` compiled."""
    for block in blocks:
        block._compiled_call_impl = None
