"""Attention over chosen key windows, with what is known of the windows that were not chosen."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.film.scores import Heads
from benchmarks.film.windows import PARTS, Windows

RESTS = ("drop", "means", "first")


@contextmanager
def fast_products() -> Iterator[None]:
    """TF32 for products whose factors are bfloat16 numbers or softmax weights."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def attend_dense(heads: Heads, rows: slice) -> Tensor:
    """Exact attention of some rows, those of sinks."""
    q, k, v = (x[None] for x in (heads.q[:, rows], heads.k, heads.v))
    return F.scaled_dot_product_attention(q, k, v)[0]


def attend_windows(
    heads: Heads,
    queries: Windows,
    keys: Windows,
    kept: Tensor,
    rest: str,
    dtype: torch.dtype,
    parted: Tensor | None = None,
) -> Tensor:
    """Output [N, n, D] of the non-sink rows.

    Parameters
    ----------
    kept
        bool [N, query windows, key windows]: pairs computed exactly.
    rest
        ``drop``: other windows do not count. ``means``: each counts as one key, its mean key
        with its tokens as weight and its mean value. ``first``: that and a first-order term.
    dtype
        Element type that means are rounded to.
    parted
        bool as ``kept``, of windows that are not: each counts as its ``PARTS`` equal parts, with
        means of their own. Only with ``means``.
    """
    if parted is not None and rest != "means":
        raise ValueError(f"parts are known by their means, and rest is {rest}")
    if rest not in RESTS:
        raise ValueError(f"rest is one of {RESTS}, not {rest}")
    chosen = kept.sum(-1)
    most = max(1, int(chosen.max()))
    index = kept.byte().sort(dim=-1, descending=True, stable=True).indices[..., :most]
    padding = torch.arange(most, device=kept.device) >= chosen[..., None]
    numbers = torch.arange(len(heads), device=kept.device)[:, None, None]

    q = queries.gather(heads.free_q) * heads.scale
    real_k = keys.gather(heads.free_k)[numbers, index].flatten(2, 3)
    sink_k, sink_v = heads.k[:, None, : heads.sinks], heads.v[:, None, : heads.sinks]
    with fast_products():
        logits = [q @ sink_k.transpose(2, 3), q @ real_k.transpose(2, 3)]
    del real_k
    blank = padding.repeat_interleave(keys.size, -1)[:, :, None]
    logits[1].masked_fill_(blank, -math.inf)
    if rest != "drop":
        mean_k, mean_v = keys.means(heads.free_k), keys.means(heads.free_v)
        pseudo_k, pseudo_v = (x.to(dtype).float()[:, None] for x in (mean_k, mean_v))
        pseudo = q @ pseudo_k.transpose(2, 3) + math.log(keys.size)
        known = kept if parted is None else kept | parted
        logits.append(pseudo.masked_fill_(known[:, :, None], -math.inf))
    if parted is not None:
        part_k, part_v = (keys.means(x, PARTS) for x in (heads.free_k, heads.free_v))
        part_k, part_v = (x.to(dtype).float()[:, None] for x in (part_k, part_v))
        pseudo = q @ part_k.transpose(2, 3) + math.log(keys.size / PARTS)
        others = ~parted.repeat_interleave(PARTS, -1)[:, :, None]
        logits.append(pseudo.masked_fill_(others, -math.inf))
        pseudo_v = torch.cat([pseudo_v, part_v], 2)
    weights = torch.softmax(torch.cat(logits, -1), -1)
    del logits
    sizes = [heads.sinks, most * keys.size, weights.shape[-1] - heads.sinks - most * keys.size]
    sink_w, real_w, pseudo_w = weights.split(sizes, -1)
    real_v = keys.gather(heads.free_v)[numbers, index].flatten(2, 3)
    with fast_products():
        out = sink_w @ sink_v + real_w @ real_v
    del real_v
    if rest != "drop":
        out += pseudo_w @ pseudo_v
    if rest == "first":
        share = pseudo_w.sum(-1, keepdim=True) / heads.free_k.shape[1]
        out += share * (q @ _first_order(heads, keys, mean_k)[:, None])
    return queries.scatter(out)


def _first_order(heads: Heads, keys: Windows, mean_k: Tensor) -> Tensor:
    """Per head, the sum over windows of (K - mean K)^T V: [N, D, D]."""
    centred = keys.gather(heads.free_k) - mean_k[:, :, None]
    return centred.flatten(1, 2).transpose(1, 2) @ keys.gather(heads.free_v).flatten(1, 2)
