"""Tokens, blocks and bands in Python.

The kernels' definition is ``plugins/kernels/common/geometry.h``; this module states the same
rules from the token masks' side (a pair of tokens is in a mask or not), and a test holds the two
against each other. ``docs/rainfusion.md`` gives the rules in prose.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.exact_frames import FrameRanges, beside_sinks, check_within
from rainfusion_trt.operator.settings import METHODS as METHODS  # these were defined here once
from rainfusion_trt.operator.settings import TEXT_PLACES as TEXT_PLACES
from rainfusion_trt.operator.settings import AttentionSettings, check_sink_frames, check_text
from rainfusion_trt.operator.settings import Method as Method
from rainfusion_trt.operator.settings import TextPlace as TextPlace

SAMPLE_TOKENS = 1024
BAND_UNIT = 1_000_000
PLUS_BANDS = (BAND_UNIT // 8, BAND_UNIT // 4, BAND_UNIT // 2)
TWO_WAY_RECALL = 0.95


class Kind(IntEnum):
    """The kind of a head; the values of :attr:`HeadPlan.kind`."""

    DENSE = 0
    SPATIAL = 1
    TEMPORAL = 2
    TEXTURAL = 3
    BLOCKS = 4  # rainfusion2, which knows no kinds
    WINDOWS = 5  # piecewise, which knows none either


def as_float32(value: float) -> float:
    """`value` as the device sees it: rounded to float32, in double precision."""
    return struct.unpack("f", struct.pack("f", value))[0]


def band_of(sparsity: float) -> int:
    """Band b = 1 - sqrt(s), in millionths."""
    return round((1.0 - math.sqrt(as_float32(sparsity))) * BAND_UNIT)


def stride_of(sparsity: float) -> int:
    """Stride tau = max(2, round(1 / (1 - s))), halves to even.

    The quotient is cut to four decimals first: the float32 nearest 0.6 would otherwise give
    2.5000001 and never a half.
    """
    quotient = 1.0 / (1.0 - as_float32(sparsity))
    return max(2, round(round(quotient * 1e4) / 1e4))


def kept_blocks(sparsity: float, count: int) -> int:
    """Key blocks that a query block of rainfusion2 selects out of `count`, windows of piecewise."""
    share = round((1.0 - as_float32(sparsity)) * BAND_UNIT)
    return -(-count * share // BAND_UNIT)


def band_width(band: int, extent: int) -> int:
    """Width w of the mask ``|x - y| < w`` for a band in millionths of `extent`."""
    return max(1, -(-band * extent // BAND_UNIT))


class BlockShape(NamedTuple):
    """Tokens in a query block and in a key block."""

    q: int
    k: int


def block_shape(head_size: int, precision: str = "16bit") -> BlockShape:
    """Default blocks of spatial and temporal heads and of rainfusion2 at a head size.

    Chosen by what the Hopper kernel computes fastest, at the head sizes that have kernels: 64, 96
    and 128. The kernels' definition is ``block_shape`` in geometry.h; a problem may ask for others.
    """
    widest = 96 if precision == "8bit" else 80
    return BlockShape(192, 128 if head_size <= 64 else 96 if head_size <= 96 else widest)


@dataclass(frozen=True)
class Block:
    """Tokens [begin, end) in memory order that are kept or dropped together."""

    begin: int
    end: int
    sink: bool


@dataclass(frozen=True)
class TokenLayout:
    """The places of text, sink frames and other video tokens in the sequence.

    Attributes
    ----------
    grid
        Token grid (T, H, W) after patching.
    tokens
        S = T * H * W + L.
    text
        Place of the L text tokens.
    sink_frames, last_sink_frames
        Latent frames at the begin and at the end of the clip whose tokens are sinks.
    exact_frames
        Ranges of latent frames, of which blocks and windows with a token are exact.
    """

    grid: tuple[int, int, int]
    tokens: int
    text: TextPlace = AttentionSettings.text
    sink_frames: int = AttentionSettings.sink_frames
    last_sink_frames: int = AttentionSettings.last_sink_frames
    exact_frames: FrameRanges = AttentionSettings.exact_frames

    @classmethod
    def of(cls, grid: Sequence[int], tokens: int, settings: AttentionSettings) -> TokenLayout:
        """The layout of a call's `tokens` under its settings."""
        sizes: Any = tuple(grid)  # three, or the check that follows says so
        sinks = settings.sink_frames, settings.last_sink_frames
        return cls(sizes, tokens, settings.text, *sinks, settings.exact_frames)

    def __post_init__(self) -> None:
        check_text(self.text)
        check_sink_frames(self.sink_frames)
        check_sink_frames(self.last_sink_frames, "last_sink_frames")
        sizes: Sequence[int] = self.grid
        if len(sizes) != 3 or min(sizes) < 1:
            raise InvalidInputError(
                f"grid={tuple(self.grid)} must be three positive sizes (T, H, W)"
            )
        if self.text_tokens < 0:
            raise InvalidInputError(
                f"S={self.tokens} tokens are fewer than T*H*W={self.video_tokens} of grid "
                f"{tuple(self.grid)}; pass the grid after patching"
            )
        if self.text == "none" and self.text_tokens > 0:
            raise InvalidInputError(
                f"S={self.tokens} is {self.text_tokens} more than T*H*W={self.video_tokens} of "
                f"grid {tuple(self.grid)}, but text='none'; say text='first' or text='last', or "
                "correct the grid"
            )
        check_within(self.exact_frames, self.grid[0])

    @property
    def video_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def text_tokens(self) -> int:
        return self.tokens - self.video_tokens

    @property
    def video_begin(self) -> int:
        return self.text_tokens if self.text == "first" else 0

    @property
    def text_begin(self) -> int:
        return 0 if self.text == "first" else self.video_tokens

    @property
    def frame(self) -> int:
        """Tokens in a frame, H * W."""
        return self.grid[1] * self.grid[2]

    @property
    def free_frames(self) -> int:
        """T', the frames that are no sinks."""
        return max(0, self.grid[0] - self.sink_frames - self.last_sink_frames)

    @property
    def free_tokens(self) -> int:
        """n = T' * H * W."""
        return self.free_frames * self.frame

    @property
    def free_begin(self) -> int:
        """First non-sink token in memory order; the others follow it without a gap."""
        return self.video_begin + min(self.grid[0], self.sink_frames) * self.frame

    @property
    def free_end(self) -> int:
        """First token in memory order behind the non-sink tokens."""
        return self.free_begin + self.free_tokens

    @property
    def free_exact_frames(self) -> FrameRanges:
        """Those of the exact frames that are no sinks, counted from the first other frame."""
        last = self.grid[0] - self.last_sink_frames
        return beside_sinks(self.exact_frames, self.sink_frames, last)

    @property
    def always_dense(self) -> bool:
        """True where fewer than two non-sink frames leave nothing to classify."""
        return self.free_frames < 2

    def blocks(self, size: int) -> list[Block]:
        """Blocks of `size` tokens in memory order; text and video are cut separately."""
        free_begin, free_end = self.free_begin, self.free_end

        def cut(begin: int, end: int) -> list[Block]:
            ranges = [(b, min(b + size, end)) for b in range(begin, end, size)]
            return [Block(b, e, b < free_begin or e > free_end) for b, e in ranges]

        text = cut(self.text_begin, self.text_begin + self.text_tokens)
        video = cut(self.video_begin, self.video_begin + self.video_tokens)
        return text + video if self.text == "first" else video + text

    def is_sink(self) -> Tensor:
        """bool [S]: text tokens and the tokens of sink frames."""
        sink = torch.ones(self.tokens, dtype=torch.bool)
        sink[self.free_begin : self.free_end] = False
        return sink

    def is_exact(self) -> Tensor:
        """bool [S]: tokens of exact frames, sinks among them."""
        exact = torch.zeros(self.tokens, dtype=torch.bool)
        frames = exact[self.video_begin : self.video_begin + self.video_tokens]
        for begin, end in self.exact_frames:
            frames.view(-1, self.frame)[begin:end] = True
        return exact

    def local_sample(self) -> tuple[int, int]:
        """Step and count of ARM's local sample: places of the first non-sink frame."""
        step = -(-self.frame // SAMPLE_TOKENS)
        return step, -(-self.frame // step)

    def global_sample(self) -> tuple[int, int]:
        """Step and count of ARM's global sample: non-sink tokens, step coprime to W."""
        size = min(self.frame, SAMPLE_TOKENS)
        step = max(1, -(-self.free_tokens // size))
        while math.gcd(step, self.grid[2]) != 1:
            step += 1
        return step, -(-self.free_tokens // step)


def always_kept(
    layout: TokenLayout, shape: BlockShape, device: str | torch.device = "cpu"
) -> Tensor:
    """Block pairs that every kind keeps.

    One of the two holds a sink token or one of an exact frame, or they share a token.

    Returns
    -------
    Tensor
        bool [q_blocks, k_blocks], in memory order.
    """
    exact_before = torch.nn.functional.pad(layout.is_exact().cumsum(0), (1, 0)).to(device)
    (q_begin, q_end, q_sink), (k_begin, k_end, k_sink) = (
        torch.tensor([(b.begin, b.end, b.sink) for b in layout.blocks(size)], device=device).T
        for size in shape
    )
    q_whole = q_sink.bool() | (exact_before[q_begin] < exact_before[q_end])
    k_whole = k_sink.bool() | (exact_before[k_begin] < exact_before[k_end])
    shares = (q_begin[:, None] < k_end) & (k_begin < q_end[:, None])
    return shares | q_whole[:, None] | k_whole


def blocks_cross(
    grid: Sequence[int], sinks: tuple[int, int], exact: FrameRanges, shape: BlockShape
) -> bool:
    """Whether :func:`always_kept` is all pairs of blocks, for frames of `sinks` at the ends.

    Text is cut by itself and all sinks, so that it says nothing here. The numbers may be symbolic.
    """
    frames, height, width = grid
    frame, last = height * width, frames - sinks[1]
    gaps, begin = [], sinks[0]
    for first, behind in (*exact, (last, frames)):
        if begin < min(first, last):
            gaps.append((begin * frame, min(first, last) * frame))
        begin = max(begin, behind)
    outer_q, outer_k = (_outer_blocks(gaps, size, frames * frame) for size in shape)
    return all(q[0] < k[1] and k[0] < q[1] for q in outer_q for k in outer_k)


def _outer_blocks(gaps: Sequence[tuple[int, int]], size: int, tokens: int) -> list[tuple[int, int]]:
    """Begin and end of the first and the last block of so many tokens that lie in each gap."""
    blocks = []
    for begin, end in gaps:
        first = -(-begin // size)
        last = (-(-end // size) if end == tokens else end // size) - 1  # the clip's last is cut off
        if first <= last:
            blocks += [(i * size, min((i + 1) * size, tokens)) for i in (first, last)]
    return blocks


def pair_mask(layout: TokenLayout, kind: Kind, parameter: int, a: Tensor, b: Tensor) -> Tensor:
    """Which pairs of non-sink tokens a kind keeps.

    Parameters
    ----------
    kind
        Spatial and temporal take a band in millionths as `parameter`, textural its stride.
    a, b
        Raster indices of query and key tokens among the non-sink tokens, int64, broadcastable.

    Returns
    -------
    Tensor
        bool, broadcast shape of `a` and `b`.
    """
    if kind is Kind.SPATIAL:
        return (a - b).abs() < band_width(parameter, layout.free_tokens)
    if kind is Kind.TEMPORAL:
        frame = layout.frame
        return (a % frame - b % frame).abs() < band_width(parameter, frame)
    if kind is Kind.TEXTURAL:
        place, width = b % layout.frame, layout.grid[2]
        keys = (place // width - place % width) % parameter == 0
        return keys.expand(torch.broadcast_shapes(a.shape, b.shape))
    raise InvalidInputError(f"{kind!r} has no token mask")
