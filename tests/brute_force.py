"""RainFusion attention by brute force: S x S masks in NumPy, straight from the contract's words.

Independent of ``rainfusion_trt.reference`` on purpose: coordinates instead of raster arithmetic,
whole matrices instead of key lists, float64 throughout.
"""

from __future__ import annotations

import math

import numpy as np

BLOCK = 128


def coordinates(grid, tokens, text, sink_frames):
    """Per token: t, y, x (text: -1), whether it is a sink, and the number of its block."""
    frames, height, width = grid
    video = frames * height * width
    t, y, x = (c.ravel() for c in np.indices(grid))
    video_blocks = np.arange(video) // BLOCK
    text_blocks = np.arange(tokens - video) // BLOCK
    blank = np.full(tokens - video, -1)
    if text == "first":
        t, y, x = (np.concatenate([blank, c]) for c in (t, y, x))
        block = np.concatenate([text_blocks, video_blocks + len(set(text_blocks))])
    else:
        t, y, x = (np.concatenate([c, blank]) for c in (t, y, x))
        block = np.concatenate([video_blocks, text_blocks + len(set(video_blocks))])
    sink = (t < sink_frames) | (t < 0)
    return t, y, x, sink, block


def token_mask(kind, sparsity, grid, t, y, x, sink_frames):
    """Pairs in the mask of a kind, for the tokens whose coordinates are given."""
    frames, height, width = grid
    free_frames = frames - sink_frames
    band = round((1 - math.sqrt(np.float32(sparsity).item())) * 1e6) / 1e6
    place = y * width + x
    raster = (t - sink_frames) * height * width + place
    if kind == "spatial":
        return np.abs(raster[:, None] - raster) < band * free_frames * height * width - 1e-6
    if kind == "temporal":
        return np.abs(place[:, None] - place) < band * height * width - 1e-6
    tau = max(2, round(round(1 / (1 - sparsity), 4)))
    return np.broadcast_to((y - x) % tau == 0, (len(y), len(y)))


def attended(kind, sparsity, grid, tokens, text, sink_frames):
    """bool [S, S]: which keys each query attends to."""
    t, y, x, sink, block = coordinates(grid, tokens, text, sink_frames)
    if kind == "dense":
        return np.ones((tokens, tokens), bool)
    pairs = token_mask(kind, sparsity, grid, t, y, x, sink_frames)
    sink_block = np.array([sink[block == i].any() for i in range(block.max() + 1)])
    if kind == "textural":
        return sink_block[block][:, None] | sink[None, :] | pairs
    count = block.max() + 1
    kept = np.zeros((count, count), bool)
    for i in range(count):
        for j in range(count):
            inside = pairs[np.ix_(block == i, block == j)]
            kept[i, j] = i == j or sink_block[i] or sink_block[j] or inside.mean() >= 0.5
    return kept[np.ix_(block, block)]


def recalls(q, k, sparsity, grid, tokens, text, sink_frames, scale):
    """(R_temporal, R_spatial) of one head; q, k [S, D] float64."""
    frames, height, width = grid
    t, y, x, sink, _ = coordinates(grid, tokens, text, sink_frames)
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
        inside = token_mask(kind, sparsity, grid, t[sample], y[sample], x[sample], sink_frames)
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


def best_blocks(q, k, sparsity, grid, tokens, text, sink_frames, scale, kv_len):
    """bool [S, S]: which keys each query of a rainfusion2 head attends to, `kv_len` included."""
    *_, sink, block = coordinates(grid, tokens, text, sink_frames)
    count = block.max() + 1
    real = np.arange(tokens) < kv_len
    inside = [real & (block == i) for i in range(count)]
    means = [np.stack([x[i].mean(0) if i.any() else 0 * x[0] for i in inside]) for x in (q, k)]
    scores = means[0] @ means[1].T * scale
    keep = math.ceil(round(count * (1 - sparsity), 6))
    kept = np.zeros((count, count), bool)
    for i in range(count):
        order = sorted(range(count), key=lambda j: (not inside[j].any(), -scores[i, j], j))
        kept[i, order[:keep]] = True
    sinks = np.array([sink[block == i].any() for i in range(count)])
    kept |= sinks[:, None] | sinks[None, :] | np.eye(count, dtype=bool)
    return kept[np.ix_(block, block)] & real
