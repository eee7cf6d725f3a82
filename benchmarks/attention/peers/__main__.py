"""Compile the peers for shapes that are measured, which needs no GPU; with --check, try them.

    python -m benchmarks.attention.peers --flash-attention DIR --cutlass DIR --sage-attention DIR

A run of `benchmarks.attention.precision` with the same options then finds them compiled.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from itertools import product
from typing import Annotated

import torch
import typer

from benchmarks.attention.accuracy import dense_error
from benchmarks.attention.peers.rivals import (
    BUILD,
    WRONG,
    BuildOption,
    CutlassOption,
    FlashAttentionOption,
    Peer,
    SageAttentionOption,
    Trees,
    compiled,
    peers_of,
)
from benchmarks.attention.shapes import SHAPES
from benchmarks.attention.timing import first_line
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError

logger = logging.getLogger("rainfusion_trt.bench")
app = typer.Typer(add_completion=False, help=__doc__)
_TOKENS = 1100  # an odd number of blocks and a short last one, as the shapes have


@app.command()
def main(
    flash_attention: FlashAttentionOption = None,
    cutlass: CutlassOption = None,
    sage_attention: SageAttentionOption = None,
    peers_build: BuildOption = BUILD,
    shapes: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = None,
    check: Annotated[bool, typer.Option(help="Print their errors; needs a GPU.")] = False,
) -> None:
    """Compile what these shapes need."""
    trees = Trees(flash_attention, cutlass, sage_attention, peers_build)
    if not trees:
        raise InvalidInputError(
            "no sources: give --flash-attention and --cutlass, or --sage-attention"
        )
    if unknown := [shape for shape in shapes or () if shape not in SHAPES]:
        raise InvalidInputError(f"--shapes {', '.join(unknown)}: known are {', '.join(SHAPES)}")
    if check and not torch.cuda.is_available():
        raise InvalidInputError("--check: there is no CUDA GPU to run peers on")
    chosen = [SHAPES[shape] for shape in shapes or ("cogvideox-5b", "hunyuanvideo-720p")]
    sizes = {(shape.head_size, shape.layout().tokens) for shape in chosen}
    start = time.monotonic()
    paths = compiled(trees, sizes).paths
    print(f"{len(paths)} libraries in {time.monotonic() - start:.0f} s", flush=True)
    if check:
        head_sizes = sorted({head_size for head_size, _ in sizes})
        peers = peers_of(trees, [(head_size, _TOKENS) for head_size in head_sizes])
        check_peers(peers, head_sizes, torch.device("cuda"))


def check_peers(peers: Sequence[Peer], head_sizes: Sequence[int], device: torch.device) -> None:
    """Run every peer; exit status 1 if one fails or its result is wrong."""
    good = True
    for head_size, peer in product(head_sizes, peers):
        q, k, v = torch.randn(3, 2, 3, _TOKENS, head_size, device=device, dtype=torch.bfloat16)
        try:
            error = dense_error(q, k, v, peer.run_of(q, k, v)())
        except Exception as failure:
            error, said = math.inf, first_line(failure)
            logger.warning("%s", peer.name, exc_info=failure)
        else:
            said = f"relative error {error:.4f}"
        print(f"{peer.name}, D = {head_size}: {said}", flush=True)
        good &= error < WRONG
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    run_app(app, show_time=True)
