"""RainFusion attention by brute force: S x S masks in NumPy, straight from the contract's words.

Independent of ``rainfusion_trt.operator.reference`` on purpose: coordinates instead of raster
arithmetic, whole matrices instead of key lists, float64 throughout.
"""

from __future__ import annotations

import math

import numpy as np

QUERY_BLOCK = 192


def key_block(head_size):
    """Tokens in a key block: docs/rainfusion.md has the table."""
    if head_size <= 64:
        return 128
    return 96 if head_size <= 96 else 80


def coordinates(grid, tokens, text, sinks):
    """Per token: t, y, x (text: -1) and whether it is a sink.

    `sinks` are two numbers of frames, at the begin and at the end.
    """
    t, y, x = (c.ravel() for c in np.indices(grid))
    blank = np.full(tokens - math.prod(grid), -1)
    t, y, x = (np.concatenate([blank, c] if text == "first" else [c, blank]) for c in (t, y, x))
    first, last = sinks
    return t, y, x, (t < 0) | (t < first) | (t >= grid[0] - last)


def exact_tokens(grid, tokens, text, exact):
    """bool [S]: tokens of the frames in `exact`, a list of them."""
    return np.isin(coordinates(grid, tokens, text, (0, 0))[0], exact)


def block_tables(grid, tokens, text, head_size):
    """bool [blocks, S] twice: which tokens each query block and each key block holds."""
    video = math.prod(grid)
    second = tokens - video if text == "first" else video  # where the other part begins
    tables = []
    for size in (QUERY_BLOCK, key_block(head_size)):
        starts = [*range(0, second, size), *range(second, tokens, size)]
        block = np.searchsorted(starts, np.arange(tokens), side="right") - 1
        tables.append(block == np.arange(len(starts))[:, None])
    return tables


def always_kept(q_blocks, k_blocks, sink):
    """Block pairs with a sink or exact token, all in `sink`, in one of the two, or one in both."""
    kept = np.zeros((len(q_blocks), len(k_blocks)), bool)
    for i, queries in enumerate(q_blocks):
        for j, keys in enumerate(k_blocks):
            kept[i, j] = sink[queries].any() or sink[keys].any() or (queries & keys).any()
    return kept


def expanded(kept, q_blocks, k_blocks):
    """bool [S, S] of a table of block pairs."""
    return kept[np.ix_(q_blocks.argmax(0), k_blocks.argmax(0))]


def token_mask(kind, sparsity, grid, t, y, x, sinks):
    """Pairs in the mask of a kind, for the tokens whose coordinates are given."""
    frames, height, width = grid
    first, last = sinks
    free_frames = frames - first - last
    band = round((1 - math.sqrt(np.float32(sparsity).item())) * 1e6) / 1e6
    place = y * width + x
    raster = (t - first) * height * width + place
    if kind == "spatial":
        return np.abs(raster[:, None] - raster) < band * free_frames * height * width - 1e-6
    if kind == "temporal":
        return np.abs(place[:, None] - place) < band * height * width - 1e-6
    tau = max(2, round(round(1 / (1 - sparsity), 4)))
    return np.broadcast_to((y - x) % tau == 0, (len(y), len(y)))


def attended(kind, sparsity, grid, tokens, text, sinks, head_size, exact=()):
    """bool [S, S]: which keys each query attends to."""
    t, y, x, sink = coordinates(grid, tokens, text, sinks)
    if kind == "dense":
        return np.ones((tokens, tokens), bool)
    pairs = token_mask(kind, sparsity, grid, t, y, x, sinks)
    q_blocks, k_blocks = block_tables(grid, tokens, text, head_size)
    if kind == "textural":
        sink_block = np.array([sink[queries].any() for queries in q_blocks])
        return sink_block[q_blocks.argmax(0)][:, None] | sink[None, :] | pairs
    kept = always_kept(q_blocks, k_blocks, sink | exact_tokens(grid, tokens, text, exact))
    for i, queries in enumerate(q_blocks):
        for j, keys in enumerate(k_blocks):
            kept[i, j] |= pairs[np.ix_(queries, keys)].mean() >= 0.5
    return expanded(kept, q_blocks, k_blocks)


def recalls(q, k, sparsity, grid, tokens, text, sinks, scale):
    """(R_temporal, R_spatial) of one head; q, k [S, D] float64."""
    frames, height, width = grid
    t, y, x, sink = coordinates(grid, tokens, text, sinks)
    free = np.flatnonzero(~sink)
    frame = height * width
    local = free[:frame][:: math.ceil(frame / 1024)]
    size = min(frame, 1024)
    step = next(
        g
        for g in range(1, len(free) + width + 1)
        if g >= len(free) / size and math.gcd(g, width) == 1
    )
    result = []
    for kind, sample in (("temporal", local), ("spatial", free[::step])):
        scores = q[sample] @ k[sample].T * scale
        mass = np.exp(scores - scores.max(1, keepdims=True))
        mass /= mass.sum(1, keepdims=True)
        inside = token_mask(kind, sparsity, grid, t[sample], y[sample], x[sample], sinks)
        result.append((mass * inside).sum(1).mean())
    return tuple(result)


def attention(q, k, v, mask, scale):
    """Softmax attention of one head over the kept keys; rows without keys give 0."""
    scores = np.where(mask, q @ k.T * scale, -np.inf)
    top = scores.max(1, keepdims=True)
    mass = np.exp(scores - np.where(np.isfinite(top), top, 0))
    total = mass.sum(1, keepdims=True)
    return np.where(total > 0, mass / np.where(total > 0, total, 1), 0) @ v


def log_sum_exp(q, k, mask, scale):
    """Natural log of the sum of exp(score) over the kept keys; rows without keys give -inf."""
    return np.logaddexp.reduce(np.where(mask, q @ k.T * scale, -np.inf), axis=1)


def best_blocks(q, k, sparsity, grid, tokens, text, sinks, scale, kv_len, exact=()):
    """bool [S, S]: which keys each query of a rainfusion2 head attends to, `kv_len` included."""
    *_, sink = coordinates(grid, tokens, text, sinks)
    q_blocks, k_blocks = block_tables(grid, tokens, text, q.shape[1])
    real = np.arange(tokens) < kv_len

    def means(x, blocks):
        inside = [real & block for block in blocks]
        return np.stack([x[i].mean(0) if i.any() else 0 * x[0] for i in inside])

    scores = means(q, q_blocks) @ means(k, k_blocks).T * scale
    empty = [not (real & keys).any() for keys in k_blocks]
    count = len(k_blocks)
    keep = math.ceil(round(count * (1 - sparsity), 6))
    kept = always_kept(q_blocks, k_blocks, sink | exact_tokens(grid, tokens, text, exact))
    for i in range(len(q_blocks)):
        order = sorted(range(count), key=lambda j: (empty[j], -scores[i, j], j))
        kept[i, order[:keep]] = True
    return expanded(kept, q_blocks, k_blocks) & real
