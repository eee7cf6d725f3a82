"""Sparse attention over boxes by loops in float64, from the words of the rules alone."""

from __future__ import annotations

import itertools
import math

import numpy as np


def box_tables(grid, shape):
    """Token lists of aligned boxes, by coordinates."""
    tables = []
    for corner in itertools.product(*(range(0, n, m) for n, m in zip(grid, shape, strict=True))):
        steps = itertools.product(*(range(m) for m in shape))
        tables.append([_raster(grid, np.add(corner, step)) for step in steps])
    return tables


def parts_of(grid, tokens, shape, small):
    """The tokens of a box cut into the boxes of shape ``small``."""
    places = [np.unravel_index(token, grid) for token in tokens]
    corner = np.min(places, 0)
    cells = {}
    for token, place in zip(tokens, places, strict=True):
        cell = tuple((np.array(place) - corner) // np.array(small))
        cells.setdefault(cell, []).append(token)
    assert sum(len(c) for c in cells.values()) == math.prod(shape)
    return list(cells.values())


def attention(q, k, v, sinks, grid, shapes, smalls, sparsity, score, rest):
    """[S, D] of one head: every row by a list of weighted keys."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scale = q.shape[1] ** -0.5
    free_q, free_k, free_v = q[sinks:], k[sinks:], v[sinks:]
    queries, keys = (box_tables(grid, shape) for shape in shapes)
    keep = math.ceil(len(keys) * (1 - sparsity) - 1e-9)
    out = np.empty_like(q)
    for row in range(sinks):
        out[row] = _softmax(q[row] @ k.T * scale) @ v
    slope = np.zeros((q.shape[1], q.shape[1]))
    for window in keys:
        for token in window:
            slope += np.outer(free_k[token] - free_k[window].mean(0), free_v[token])
    for rows in queries:
        scores = [_score(score, free_q, free_k, rows, w, grid, shapes, smalls, scale) for w in keys]
        best = sorted(range(len(keys)), key=lambda j: (-scores[j], j))[:keep]
        kept = {j for j, w in enumerate(keys) if j in best or set(w) & set(rows)}
        for row in rows:
            logits = [q[sinks + row] @ x * scale for x in k[:sinks]]
            values, pseudo = list(v[:sinks]), [False] * sinks
            for j, window in enumerate(keys):
                if j in kept:
                    logits += [free_q[row] @ free_k[t] * scale for t in window]
                    values += [free_v[t] for t in window]
                    pseudo += [False] * len(window)
                elif rest != "drop":
                    mean = free_k[window].mean(0)
                    logits.append(free_q[row] @ mean * scale + math.log(len(window)))
                    values.append(free_v[window].mean(0))
                    pseudo.append(True)
            weights = _softmax(np.array(logits))
            out[sinks + row] = weights @ np.array(values)
            if rest == "first":
                share = weights[np.array(pseudo)].sum()
                out[sinks + row] += scale * share / len(free_q) * (free_q[row] @ slope)
    return out


def _score(score, q, k, rows, window, grid, shapes, smalls, scale):
    if score == "mean":
        return q[rows].mean(0) @ k[window].mean(0) * scale
    products = [
        q[a].mean(0) @ k[b].mean(0) * scale
        for a in parts_of(grid, rows, shapes[0], smalls[0])
        for b in parts_of(grid, window, shapes[1], smalls[1])
    ]
    assert len(products) == 16
    return math.log(sum(math.exp(x) for x in products))


def _raster(grid, place):
    return int(np.ravel_multi_index(tuple(place), grid))


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()
