"""Method piecewise by brute force: token by token in NumPy, straight from the contract's words.

Independent of ``rainfusion_trt.operator`` on purpose: boxes by fractions, tokens by coordinates,
every query by itself, float64 throughout.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import numpy as np

from helpers.brute_force import QUERY_BLOCK, coordinates, exact_tokens, key_block


@functools.cache
def best_box(grid, most, frames=16):
    """(t, h, w) of windows of at most `most` tokens and `frames` frames."""

    def cost(box):
        t, h, w = box
        windows = math.prod(math.ceil(Fraction(n, b)) for n, b in zip(grid, box, strict=True))
        stretch = Fraction(3, 2) if max(h, w) > 8 * min(h, w) else 1
        return windows * (1 + Fraction(9, 20 * t)) * stretch, h + w, -t, -w

    boxes = (
        (t, h, w)
        for t in range(1, frames + 1)
        for h in range(1, most // t + 1)
        for w in range(1, most // (t * h) + 1)
    )
    box = min(boxes, key=cost)
    counts = [math.ceil(Fraction(n, b)) for n, b in zip(grid, box, strict=True)]
    return tuple(math.ceil(Fraction(n, c)) for n, c in zip(grid, counts, strict=True))


def windows_of(grid, tokens, text, sinks, most, exact=()):
    """Lists of tokens of every window, in raster order of their places."""
    t, y, x, sink = coordinates(grid, tokens, text, sinks)
    first, last = sinks
    free = (grid[0] - first - last, grid[1], grid[2])
    short = any(first <= frame < grid[0] - last for frame in exact)
    box = best_box(free, most, 2 if short else 16)
    places = {}
    for token in np.flatnonzero(~sink):
        at = (t[token] - first, y[token], x[token])
        places.setdefault(tuple(int(a) // b for a, b in zip(at, box, strict=True)), []).append(
            token
        )
    return [places[place] for place in sorted(places)]


def piecewise(q, k, v, sparsity, grid, tokens, text, sinks, scale, kv_len, round_to, exact=()):
    """One head, q, k, v [S, D] float64: output, log-sum-exp, computed pairs, tiles.

    `round_to` rounds a mean to the tensors' type; `exact` are the exact frames.
    """
    *_, sink = coordinates(grid, tokens, text, sinks)
    size = key_block(q.shape[1])
    q_windows = windows_of(grid, tokens, text, sinks, QUERY_BLOCK, exact)
    k_windows = windows_of(grid, tokens, text, sinks, size, exact)
    is_exact = exact_tokens(grid, tokens, text, exact)
    real_windows = [[token for token in window if token < kv_len] for window in k_windows]
    keep = math.ceil(round(len(k_windows) * (1 - sparsity), 6))

    def mean(x, window):
        real = [token for token in window if token < kv_len]
        return x[real].mean(0) if real else 0 * x[0]

    k_means = [mean(k, window) for window in k_windows]
    sinks = [token for token in range(kv_len) if sink[token]]
    ends = np.flatnonzero(~sink)
    leading = sum(token < ends[0] for token in sinks)
    sink_tiles = math.ceil(leading / size) + math.ceil((len(sinks) - leading) / size)
    pairs = tiles = 0
    groups = []  # query tokens, their keys, their values, log of how many each stands for

    def add(queries, keys, rest):
        counts = [len(real_windows[j]) for j in rest]
        all_keys = [k[keys], *(round_to(k_means[j])[None] for j in rest)]
        values = [v[keys], *(round_to(mean(v, k_windows[j]))[None] for j in rest)]
        bias = np.log(np.array([1] * len(keys) + counts))
        groups.append((queries, np.concatenate(all_keys), np.concatenate(values), bias))
        return len(queries) * (len(keys) + len(rest))

    for window in q_windows:
        q_mean = mean(q, window)
        scores = [float(q_mean @ k_mean) * scale for k_mean in k_means]
        order = [j for j in range(len(k_windows)) if real_windows[j]]
        order.sort(key=lambda j: (-scores[j], j))
        kept = set(order[:keep]) | {j for j in order if set(window) & set(k_windows[j])}
        kept |= {j for j in order if is_exact[window].any() or is_exact[k_windows[j]].any()}
        rest = [j for j in order if j not in kept]
        keys = sinks + [token for j in kept for token in real_windows[j]]
        pairs += add(window, np.array(keys, int), rest)
        tiles += sink_tiles + len(kept) + len({j // size for j in rest})
    pairs += add(np.flatnonzero(sink), np.arange(kv_len), [])
    before, behind = int(ends[0]), int(tokens - 1 - ends[-1])
    runs = math.ceil(before / QUERY_BLOCK) + math.ceil(behind / QUERY_BLOCK)
    tiles += runs * math.ceil(kv_len / size)

    out, lse = np.zeros_like(v), np.full(tokens, -np.inf)
    for queries, keys, values, bias in groups:
        if len(keys) == 0:
            continue
        for token in queries:
            scores = keys @ q[token] * scale + bias
            top = scores.max()
            weights = np.exp(scores - top)
            out[token] = weights @ values / weights.sum()
            lse[token] = top + math.log(weights.sum())
    return out, lse, pairs, tiles
