"""The peers of a run: built, loaded and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.attention.peers import flash_attention, sage_attention, sources
from benchmarks.attention.peers.build import Library, build
from rainfusion_trt.errors import InvalidInputError, UnsupportedError

Run = Callable[[], Tensor]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
HEAD_SIZES = (64, 128)

FlashAttentionOption = Annotated[
    Path | None, typer.Option("--flash-attention", help="FlashAttention's sources; with --cutlass.")
]
CutlassOption = Annotated[Path | None, typer.Option("--cutlass", help="CUTLASS's sources.")]
SageAttentionOption = Annotated[
    Path | None, typer.Option("--sage-attention", help="SageAttention 2's sources.")
]
BuildOption = Annotated[
    Path, typer.Option("--peers-build", help="Folder for what is compiled of these.")
]
BUILD = Path("build/peers")
WRONG = 0.5  # relative error of what is no attention; zeros have 1


@dataclass(frozen=True)
class Peer:
    """One way to call a peer.

    Attributes
    ----------
    name
        Of its rows.
    version
        Of the sources, with their commit.
    attention
        From q, k, v, bfloat16 [B, N, S, D], to the output, rounding included.
    ready
        What is timed, from q, k, v: by default that call itself.
    """

    name: str
    version: str
    attention: Attention
    ready: Callable[[Tensor, Tensor, Tensor], Run] | None = None

    def run_of(self, q: Tensor, k: Tensor, v: Tensor) -> Run:
        return self.ready(q, k, v) if self.ready else partial(self.attention, q, k, v)


@dataclass(frozen=True)
class Trees:
    """The folders that the command line names, and where to build.

    Raises
    ------
    InvalidInputError
        One of FlashAttention and CUTLASS is named without the other.
    """

    flash_attention: Path | None = None
    cutlass: Path | None = None
    sage_attention: Path | None = None
    build: Path = BUILD

    def __post_init__(self) -> None:
        if (self.flash_attention is None) != (self.cutlass is None):
            raise InvalidInputError("--flash-attention and --cutlass are needed together")

    def __bool__(self) -> bool:
        return self.flash_attention is not None or self.sage_attention is not None


def peers_of(trees: Trees, sizes: Iterable[tuple[int, int]]) -> list[Peer]:
    """Compile what these head sizes and numbers of queries need, and load it.

    Raises
    ------
    InvalidInputError
        A tree is not what is expected, or does not compile.
    UnsupportedError
        A head size that is not built, or the GPU is no Hopper.
    """
    if not trees:
        return []
    if not torch.cuda.is_available():
        raise UnsupportedError("there is no CUDA GPU to run peers on")
    capability = torch.cuda.get_device_capability()
    if capability != (9, 0):
        raise UnsupportedError(f"compute capability {capability}: peers are built for (9, 0)")
    built = compiled(trees, sizes)
    peers = []
    if built.flash is not None:
        flash = flash_attention.FlashAttention3(built.paths)
        peers += flash_peers(flash, built.flash[0].label)
    if built.sage is not None:
        attention = sage_attention.sage_attention(built.sage, built.paths)
        peers.append(Peer("sage2", f"SageAttention {built.sage.label}", attention))
    return peers


@dataclass(frozen=True)
class Built:
    """Libraries by their names, and what they are of: FlashAttention with CUTLASS, and Sage."""

    paths: dict[str, Path]
    flash: tuple[sources.Source, sources.Source] | None
    sage: sources.Source | None


def compiled(trees: Trees, sizes: Iterable[tuple[int, int]]) -> Built:
    """Compile alone, which needs no GPU; all trees are looked at before. Raises as `peers_of`."""
    pairs = list(sizes)
    if other := sorted({d for d, _ in pairs if d not in HEAD_SIZES}):
        raise UnsupportedError(f"head size {other[0]}: peers are built for {HEAD_SIZES}")
    flash = sage = None
    libraries: list[Library] = []
    if trees.flash_attention is not None and trees.cutlass is not None:
        flash = (
            sources.source_of(sources.FLASH_ATTENTION, trees.flash_attention),
            sources.source_of(sources.CUTLASS, trees.cutlass),
        )
        libraries += flash_attention.libraries(pairs, *flash)
    if trees.sage_attention is not None:
        sage = sources.source_of(sources.SAGE_ATTENTION, trees.sage_attention)
        libraries.append(sage_attention.library(sage, trees.build))
    return Built(build(libraries, trees.build), flash, sage)


def flash_peers(flash: flash_attention.FlashAttention3, label: str) -> list[Peer]:
    """FlashAttention-3 in 16 bits, and in 8 with and without the rounding in its time."""

    def rounded_before(q: Tensor, k: Tensor, v: Tensor) -> Run:
        return partial(flash.attend_rounded, *map(flash.rounded, (q, k, v)))

    version = f"FlashAttention {label}"
    return [
        Peer("fa3", version, flash.attend),
        Peer("fa3-fp8", version, flash.attend_8bit),
        Peer("fa3-fp8-rounded-before", version, flash.attend_8bit, rounded_before),
    ]
