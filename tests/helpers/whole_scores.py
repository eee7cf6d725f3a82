"""The operator with all scores of a head at once: what tests on a GPU hold the kernels against.

``rainfusion_trt.operator.reference`` goes block by block, thousands of small operators with a
wait for the device at every other one. Here a head is one matrix [S, S] and its mask, some sixty
operators. How heads choose is the reference's own (``rainfusion_trt.operator.choice``); what
follows from a choice is written down a second time. ``tests/operator/test_whole_scores.py`` holds
the two against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helpers.whole_scores_8bit import EightBitClip
from rainfusion_trt.operator.choice import Call, Head, choose
from rainfusion_trt.operator.geometry import Block, BlockShape, Kind, TokenLayout, block_shape
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings


class Wanted(NamedTuple):
    """What a call should give: float32 [B, N, S, D], float32 [B, N, S], and the report."""

    out: Tensor
    lse: Tensor
    plan: HeadPlan


class Pairs(NamedTuple):
    """What the queries of a head attend to."""

    keys: Tensor  # bool [S, S]
    means: Tensor | None  # bool [S, key windows]: those that stand for their window
    tiles: Tensor | int  # of a query block by a key block


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grid: Sequence[int],
    *,
    sparsity: float = 0.5,
    kv_len: Tensor | None = None,
    blocks: BlockShape | None = None,
    chosen: Tensor | None = None,
    **settings: Any,
) -> Wanted:
    """Arguments as :func:`rainfusion_trt.rainfusion_attention`, and what a kernel was told.

    Parameters
    ----------
    blocks
        Blocks that a problem asks for, instead of the default.
    chosen
        bool [B, N, query windows, key windows]: what the kernels chose, instead of the
        reference's choice, for heads of windows.
    """
    collected = AttentionSettings.of(**settings)
    batch, heads, tokens, head_size = q.shape
    call = Call(
        TokenLayout.of(grid, tokens, collected),
        blocks or block_shape(head_size, collected.precision),
        float(sparsity),
        collected.method,
        collected.alpha,
        collected.softmax_scale(head_size),
        q.device,
    )
    lengths = [tokens] * batch if kv_len is None else kv_len.clamp(0, tokens).tolist()
    out = torch.zeros(q.shape, device=q.device)
    lse = torch.full(q.shape[:3], -math.inf, device=q.device)
    rows = []
    for b, length in enumerate(lengths):
        clip = None
        for h in range(heads):
            if chosen is not None:
                head = Head(Kind.WINDOWS, math.nan, math.nan, chosen[b, h])
            else:
                head = choose(call, q[b, h], k[b, h], length)
            pairs = _pairs(call, head, length)
            rows.append(_report(call, head, pairs, length))
            if length == 0:
                continue
            if collected.precision == "8bit":
                clip = clip or EightBitClip(call, q[b], k[b], v[b], length)
                clip.add(pairs.keys, pairs.means)
            else:
                out[b, h], lse[b, h] = _head(call, pairs, q[b, h], k[b, h], v[b, h], length)
        if clip is not None:
            out[b], lse[b] = clip.attend()
    kind, *numbers = torch.stack(rows).view(batch, heads, -1).unbind(-1)
    return Wanted(out, lse, HeadPlan(kind.int(), *(x.float() for x in numbers)))


def _pairs(call: Call, head: Head, kv_len: int) -> Pairs:
    real = torch.arange(call.layout.tokens, device=call.device) < kv_len
    if head.kind is Kind.WINDOWS:
        return _window_pairs(call, head, real, kv_len)
    q_block = _block_of(call.q_blocks, call.device)
    whole = [block.sink or head.kind is Kind.DENSE for block in call.q_blocks]
    on_device = torch.tensor(whole, device=call.device)
    if head.mask is None:
        kept = on_device[q_block][:, None] | call.textural_keys
        free = (real & call.textural_keys)[call.layout.free_begin : call.layout.free_end]
        tiles = _sink_tiles(call, kv_len) + _tiles(call, free.sum())
        tiles *= whole.count(False)
    else:
        mask = head.mask | on_device[:, None]
        kept = mask[q_block][:, _block_of(call.k_blocks, call.device)]
        begins = torch.tensor([block.begin for block in call.k_blocks], device=call.device)
        tiles = (head.mask & ~on_device[:, None] & (begins < kv_len)).sum()
    return Pairs(kept & real, None, tiles + whole.count(True) * _tiles(call, kv_len))


def _window_pairs(call: Call, head: Head, real: Tensor, kv_len: int) -> Pairs:
    windows, chosen = call.windows, head.mask
    assert windows is not None and chosen is not None
    q_cut, k_cut = windows.q_cut, windows.k_cut
    q_window, k_window = (cut.window_of(call.device) for cut in (q_cut, k_cut))
    rest = (windows.counts(kv_len) > 0) & ~chosen
    # Sinks attend to all keys, and to no mean: a row more, which -1 finds.
    kept = torch.nn.functional.pad(chosen, (0, 0, 0, 1), value=True)[q_window][:, k_window]
    means = torch.nn.functional.pad(rest, (0, 0, 0, 1), value=False)[q_window]
    by_tile = torch.nn.functional.pad(rest, (0, -k_cut.windows % call.shape.k))
    tiles = chosen.sum() + by_tile.view(q_cut.windows, -1, call.shape.k).any(2).sum()
    tiles += q_cut.windows * _sink_tiles(call, kv_len)
    tiles += len(q_cut.sink_runs()) * _tiles(call, kv_len)
    return Pairs((kept | (k_window < 0)) & real, means, tiles)


def _block_of(blocks: Sequence[Block], device: torch.device) -> Tensor:
    """int64 [S]: the block of every token."""
    lengths = torch.tensor([block.end - block.begin for block in blocks])
    return torch.arange(len(blocks)).repeat_interleave(lengths).to(device)


def _tiles(call: Call, keys: Any) -> Any:
    return -(-keys // call.shape.k)


def _sink_tiles(call: Call, kv_len: int) -> int:
    """Key tiles of the sinks before the first and behind the last other token."""
    behind = max(0, kv_len - call.layout.free_end)
    return _tiles(call, min(call.layout.free_begin, kv_len)) + _tiles(call, behind)


def _report(call: Call, head: Head, pairs: Pairs, kv_len: int) -> Tensor:
    """float64 [5]: kind, recalls, density and work of a head."""
    count = pairs.keys.sum() + (0 if pairs.means is None else pairs.means.sum())
    shares = torch.stack([count, torch.as_tensor(pairs.tiles, device=call.device)]).double()
    shares[1] *= call.shape.q * call.shape.k
    shares /= max(1, call.layout.tokens * kv_len)
    found = (head.kind, head.recall_temporal, head.recall_spatial)
    return torch.cat([torch.tensor(found, dtype=torch.float64, device=call.device), shares])


def _head(
    call: Call, pairs: Pairs, q: Tensor, k: Tensor, v: Tensor, kv_len: int
) -> tuple[Tensor, Tensor]:
    """Attention of one head in float32: q, k, v [S, D] -> [S, D] and log-sum-exp [S]."""
    scores = (q.float() @ k.float().T * call.scale).masked_fill_(~pairs.keys, -math.inf)
    value = v.float().clone()
    value[kv_len:] = 0.0  # where they may be NaN, which a probability of 0 does not hide
    if pairs.means is not None:
        assert call.windows is not None
        mean_key, mean_value, log_count = call.windows.pseudo(k, v, kv_len)
        bias = torch.where(pairs.means, log_count, -math.inf)
        scores = torch.cat([scores, q.float() @ mean_key.T * call.scale + bias], 1)
        value = torch.cat([value, mean_value])
    lse = torch.logsumexp(scores, 1)
    out = torch.softmax(scores, 1) @ value
    return out.masked_fill(lse.isneginf()[:, None], 0.0), lse
