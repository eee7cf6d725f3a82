"""Predictions made before anything was measured, and figures that others published."""

from __future__ import annotations

# Relative error of the velocity at s = .8 and at s = .9. Written down before the first
# training, after an earlier rough run at 13 x 25 x 44 tokens whose windows were no boxes.
PREDICTED: dict[str, tuple[float, float]] = {
    "everything kept": (0.005, 0.005),
    "RainFusion2": (0.29, 0.49),
    "raster, means": (0.21, 0.36),
    "raster, first order": (0.20, 0.34),
    "boxes, dropped": (0.24, 0.36),
    "boxes, means": (0.145, 0.215),
    "boxes, first order": (0.150, 0.225),
    "boxes, sub-window scores, means": (0.140, 0.205),
    "boxes, sub-window scores, first order": (0.143, 0.212),
    "boxes, true mass, first order": (0.120, 0.180),
    "all temporal, tokens": (0.23, 0.34),
    "boxes, nearest in place, dropped": (0.25, 0.37),
    "boxes, nearest in place, means": (0.17, 0.23),
    "boxes, nearest, means": (0.19, 0.26),
    "long boxes, sub, means": (0.150, 0.220),
    "flat boxes, sub, means": (0.19, 0.27),
    "boxes, covariance, first order": (0.145, 0.212),
    "boxes, threshold, means": (0.150, 0.225),
    "RainFusion": (0.80, 0.98),
    "RainFusion, textural with means": (0.40, 0.50),
    "RainFusion, larger recall": (0.28, 0.40),
    "random blocks, dropped": (0.62, 0.75),
    "random boxes, means": (0.27, 0.32),
    "shape of a head, sub, means": (0.135, 0.200),
}

# The same, written down before the third training for the rules that it measures besides.
PREDICTED_LATER: dict[str, tuple[float, float]] = {
    "long boxes, means": (0.065, 0.098),
    "long boxes, dropped": (0.108, 0.165),
    "long queries, cube keys, means": (0.080, 0.122),
    "cube queries, long keys, means": (0.071, 0.106),
}

# The same for clips of 33 frames, before weights were tuned on any: more moves in four seconds,
# so windows that span everything lose what they gain on 13 frames, and half of it is best.
PREDICTED_LONGER: dict[str, tuple[float, float]] = {
    "RainFusion2": (0.25, 0.46),
    "raster, means": (0.19, 0.34),
    "cube boxes, means": (0.090, 0.135),
    "long boxes, means": (0.075, 0.110),
    "eight boxes, means": (0.080, 0.120),
    "all boxes, means": (0.078, 0.115),
    "half-wide boxes, means": (0.080, 0.118),
    "long queries, cube keys, means": (0.085, 0.130),
    "cube queries, long keys, means": (0.082, 0.120),
    "long boxes, sub, means": (0.073, 0.106),
    "cube boxes, sub, means": (0.087, 0.128),
    "long boxes, nearest in place, means": (0.105, 0.130),
}

# Share of keys that holds 95 % of a head's mass: mean, then the quantiles and shares of
# `benchmarks.film.coverage`. From the profiles in github.com/Mutual-Luo/SVOO (Apache-2.0): 720p,
# every step, layer and head.
PUBLISHED: dict[str, tuple[float, tuple[float, ...], tuple[float, ...]]] = {
    "HunyuanVideo 13B t2v": (0.155, (0.001, 0.009, 0.046, 0.190, 0.737), (0.76, 0.84, 0.89)),
    "HunyuanVideo 13B i2v": (0.165, (0.001, 0.010, 0.056, 0.218, 0.730), (0.74, 0.83, 0.88)),
    "Wan 2.1 1.3B t2v": (0.144, (0.002, 0.012, 0.051, 0.183, 0.648), (0.77, 0.86, 0.92)),
    "Wan 2.1 14B t2v": (0.247, (0.004, 0.038, 0.135, 0.370, 0.856), (0.59, 0.74, 0.82)),
    "Wan 2.1 14B i2v": (0.214, (0.004, 0.027, 0.098, 0.297, 0.853), (0.67, 0.79, 0.84)),
    "Wan 2.2 A14B t2v": (0.243, (0.004, 0.037, 0.138, 0.358, 0.843), (0.59, 0.75, 0.82)),
    "Wan 2.2 A14B i2v": (0.202, (0.004, 0.029, 0.096, 0.277, 0.812), (0.67, 0.81, 0.86)),
    "the demo model": (0.313, (0.206, 0.267, 0.308, 0.366, 0.413), (0.05, 0.72, 0.98)),
}
