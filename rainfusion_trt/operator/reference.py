"""The operator in plain PyTorch: the meaning of RainFusionAttention, without speed.

Every softmax is computed in float32 over an explicit list of keys, so that the kernels have
something independent to be compared with. ``docs/rainfusion.md`` is the definition.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor

from rainfusion_trt.operator import eight_bit
from rainfusion_trt.operator.choice import Call, Head, block_mask, choose
from rainfusion_trt.operator.geometry import Kind, TokenLayout, block_shape
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings

P = ParamSpec("P")
R = TypeVar("R")

__all__ = ["attention", "block_mask", "classify", "classify_heads", "rainfusion_attention"]


class _Rows(NamedTuple):
    """Query tokens that attend to the same keys."""

    tokens: Tensor | slice
    size: int  # how many they are
    keys: Tensor  # bool [S]
    means: Tensor | None  # bool [key windows]: attended to by their means
    middle: int  # a token in the middle of them
    tiles: int  # of keys, in which a kernel has them


def _rows(call: Call, head: Head, kv_len: int) -> Iterator[_Rows]:
    """The query blocks of a head, or its runs of sinks and its query windows."""
    real = torch.arange(call.layout.tokens, device=call.device) < kv_len
    if head.kind is Kind.WINDOWS:
        yield from _window_rows(call, head, real, kv_len)
        return
    lengths = torch.tensor([b.end - b.begin for b in call.k_blocks], device=call.device)
    starts_below = torch.tensor([b.begin < kv_len for b in call.k_blocks], device=call.device)
    for i, block in enumerate(call.q_blocks):
        whole = block.sink or head.kind is Kind.DENSE
        if whole:
            keys, tiles = real, _tiles(call, kv_len)
        elif head.mask is None:
            keys = real & call.textural_keys
            checkerboard = keys[call.layout.free_begin : call.layout.free_end]
            tiles = _sink_tiles(call, kv_len) + _tiles(call, int(checkerboard.sum()))
        else:
            keys = real & head.mask[i].repeat_interleave(lengths)
            tiles = int((head.mask[i] & starts_below).sum())
        yield _run(block.begin, block.end, keys, tiles)


def _window_rows(call: Call, head: Head, real: Tensor, kv_len: int) -> Iterator[_Rows]:
    windows, chosen = call.windows, head.mask
    assert windows is not None and chosen is not None
    for begin, end in windows.q_cut.sink_runs():
        yield _run(begin, end, real, _tiles(call, kv_len))
    candidates = windows.counts(kv_len) > 0
    middles = windows.q_cut.middles(call.device).tolist()
    for tokens, kept, middle in zip(windows.q_tokens, chosen, middles, strict=True):
        tokens = tokens[tokens >= 0]
        rest = candidates & ~kept
        tiles = _sink_tiles(call, kv_len) + int(kept.sum())
        tiles += sum(bool(tile.any()) for tile in rest.split(call.shape.k))
        yield _Rows(tokens, len(tokens), real & windows.keys(kept), rest, middle, tiles)


def _run(begin: int, end: int, keys: Tensor, tiles: int) -> _Rows:
    """Tokens [begin, end)."""
    size = end - begin
    return _Rows(slice(begin, end), size, keys, None, begin + size // 2, tiles)


def _tiles(call: Call, keys: int) -> int:
    return -(-keys // call.shape.k)


def _sink_tiles(call: Call, kv_len: int) -> int:
    """Key tiles of the sinks before the first and behind the last non-sink token."""
    leading = min(call.layout.free_begin, kv_len)
    return _tiles(call, leading) + _tiles(call, max(0, kv_len - call.layout.free_end))


def _attend(
    call: Call, head: Head, q: Tensor, k: Tensor, v: Tensor, kv_len: int
) -> tuple[Tensor, Tensor]:
    """Attention of one head in float32: q, k, v [S, D] -> [S, D] and log-sum-exp [S]."""
    out = torch.zeros_like(v, dtype=torch.float32)
    lse = out.new_full(out.shape[:1], -math.inf)
    pseudo = None if call.windows is None else call.windows.pseudo(k, v, kv_len)
    for rows in _rows(call, head, kv_len):
        if not rows.keys.any() and (rows.means is None or not rows.means.any()):
            continue
        query, value = q[rows.tokens].float(), v[rows.keys].float()
        scores = query @ k[rows.keys].float().T * call.scale
        if rows.means is not None:
            assert pseudo is not None
            mean_key, mean_value, log_count = (x[rows.means] for x in pseudo)
            scores = torch.cat([scores, query @ mean_key.T * call.scale + log_count], 1)
            value = torch.cat([value, mean_value])
        out[rows.tokens] = torch.softmax(scores, dim=-1) @ value
        lse[rows.tokens] = torch.logsumexp(scores, dim=-1)
    return out, lse


def _attend_in_eight_bits(
    call: Call, head: Head, q: Tensor, k: Tensor, v: Tensor, kv_len: int
) -> tuple[Tensor, Tensor]:
    """The same with operands of 8 bits."""
    out = torch.zeros_like(v, dtype=torch.float32)
    lse = out.new_full(out.shape[:1], -math.inf)
    operands = eight_bit.EightBitHead(call, head, q, k, v, kv_len)
    for rows in _rows(call, head, kv_len):
        asked = eight_bit.RowTokens(rows.tokens, rows.keys, rows.means, rows.middle)
        found = operands.attend(asked)
        if found is not None:
            out[rows.tokens], lse[rows.tokens] = found
    return out, lse


def _density_and_work(call: Call, head: Head, kv_len: int) -> tuple[float, float]:
    """Computed pairs, and pairs of the tiles that hold them, over S * kv_len."""
    pairs = tiles = 0
    for rows in _rows(call, head, kv_len):
        means = 0 if rows.means is None else int(rows.means.sum())
        pairs += rows.size * (int(rows.keys.sum()) + means)
        tiles += rows.tiles
    all_pairs = max(1, call.layout.tokens * kv_len)
    return pairs / all_pairs, tiles * call.shape.q * call.shape.k / all_pairs


def _start(
    q: Tensor, grid: Sequence[int], sparsity: float | Tensor, settings: AttentionSettings
) -> Call:
    head_size = q.shape[-1]
    return Call(
        TokenLayout.of(grid, q.shape[2], settings),
        block_shape(head_size, settings.precision),
        float(sparsity),
        settings.method,
        settings.alpha,
        settings.softmax_scale(head_size),
        q.device,
    )


def _lengths(q: Tensor, kv_len: Tensor | None) -> list[int]:
    if kv_len is None:
        return [q.shape[2]] * q.shape[0]
    return kv_len.clamp(0, q.shape[2]).tolist()


def _without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """What is rounded, and when, is the definition's: not that of a region around the call."""

    @functools.wraps(function)
    def exact(*args: P.args, **kwargs: P.kwargs) -> R:
        q = args[0]
        assert isinstance(q, Tensor)
        with torch.autocast(q.device.type, enabled=False):
            return function(*args, **kwargs)

    return exact


@_without_autocast
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    sparsity: float | Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
    *,
    return_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    """RainFusion attention under collected settings: output and, if asked for, log-sum-exp."""
    call = _start(q, grid, sparsity, settings)
    attend = _attend_in_eight_bits if settings.precision == "8bit" else _attend
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    for b, length in enumerate(_lengths(q, kv_len)):
        for h in range(q.shape[1]):
            head = choose(call, q[b, h], k[b, h], length)
            out[b, h], lse[b, h] = attend(call, head, q[b, h], k[b, h], v[b, h], length)
    return out, lse if return_lse else None


@_without_autocast
def classify(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int],
    sparsity: float | Tensor,
    kv_len: Tensor | None,
    settings: AttentionSettings,
) -> HeadPlan:
    """ARM alone, under collected settings."""
    call = _start(q, grid, sparsity, settings)
    rows = []
    for b, length in enumerate(_lengths(q, kv_len)):
        for h in range(q.shape[1]):
            head = choose(call, q[b, h], k[b, h], length)
            rows.append(
                (
                    head.kind,
                    head.recall_temporal,
                    head.recall_spatial,
                    *_density_and_work(call, head, length),
                )
            )
    table = torch.tensor(rows, dtype=torch.float64, device=q.device).view(*q.shape[:2], -1)
    kind, *numbers = table.unbind(-1)
    return HeadPlan(kind.int(), *(number.float() for number in numbers))


def rainfusion_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    *,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    return_lse: bool = False,
    **settings: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """RainFusion attention; arguments as :func:`rainfusion_trt.rainfusion_attention`.

    Returns
    -------
    Tensor
        [B, N, S, D] in the dtype of `q`; rows that attend to no key are 0.
    Tensor, with `return_lse`
        float32 [B, N, S]: log-sum-exp of the scaled scores; rows that attend to no key are
        -infinity.
    """
    collected = AttentionSettings.of(**settings)
    out, lse = attention(q, k, v, grid, sparsity, kv_len, collected, return_lse=return_lse)
    return out if lse is None else (out, lse)


def classify_heads(
    q: Tensor,
    k: Tensor,
    grid: Sequence[int],
    *,
    sparsity: float | Tensor = 0.5,
    kv_len: Tensor | None = None,
    **settings: Any,
) -> HeadPlan:
    """ARM alone; arguments as :func:`rainfusion_trt.classify_heads`.

    Returns
    -------
    HeadPlan
        Tensors of shape [B, N] on the device of `q`.
    """
    return classify(q, k, grid, sparsity, kv_len, AttentionSettings.of(**settings))
