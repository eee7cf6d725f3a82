"""The rules that are compared at equal densities: the package's own, others', and bounds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.film.catalogue import Catalogue
from benchmarks.film.kinds import KindRule
from benchmarks.film.product import OperatorRule
from benchmarks.film.rules import Rule, WindowRule
from benchmarks.film.sampled import SampledKindRule
from benchmarks.film.scene import Scene
from rainfusion_trt.operator.settings import METHODS

TARGET = "piecewise"  # its densities are those that all others are brought to
BASE = "rainfusion2"
PISA = "raster, covariance scores, means and first order (PISA)"
SPARSITIES = (0.64, 0.8, 0.9)


@dataclass(frozen=True)
class Contender:
    """A rule at any sparsity.

    Attributes
    ----------
    origin
        ``package``: a method of the operator; ``others``: what others published; ``study``: what
        was tried beside; ``bound``: what nothing should be worse than, or what no rule can reach.
    """

    name: str
    origin: str
    make: Callable[[float], Rule]


def contenders(scene: Scene, device: torch.device) -> Iterator[Contender]:
    """All of them, :data:`TARGET` first."""
    catalogue = Catalogue(scene, device)

    def operator(method: str) -> Contender:
        return Contender(method, "package", lambda s: OperatorRule(method, s, scene, method))

    def windows(
        name: str,
        origin: str,
        shape: str,
        score: str,
        rest: str,
        spread: str = "row",
        finer: float = 0.0,
    ) -> Contender:
        def make(s: float) -> Rule:
            return WindowRule(name, s, scene, *catalogue.cut(shape), score, rest, spread, finer)

        return Contender(name, origin, make)

    def kinds(name: str, origin: str, forced: str) -> Contender:
        return Contender(name, origin, lambda s: KindRule(name, s, scene, device, forced=forced))

    yield operator(TARGET)
    for method in METHODS:
        if method != TARGET:
            yield operator(method)
    yield windows("raster, means", "study", "raster", "mean", "means")
    yield windows("raster, means and first order", "study", "raster", "mean", "first")
    yield windows(PISA, "others", "raster", "covariance", "first")
    yield windows(
        "raster, means, one threshold (Sol-Attn)", "others", "raster", "mean", "means", "layer"
    )
    yield Contender(
        "spatial or temporal by sampled error (SVG)",
        "others",
        lambda s: SampledKindRule("svg", s, scene, device),
    )
    yield kinds("sliding window over the raster", "others", "spatial")
    yield kinds("temporal band", "others", "temporal")
    yield windows("cubes, means", "study", "cube", "mean", "means")
    yield windows("long windows, means", "study", "long", "mean", "means")
    yield windows("long windows, sub-window scores, means", "study", "long", "sub", "means")
    yield windows("long windows, dropped", "study", "long", "mean", "drop")
    yield windows("long windows, means, one threshold", "study", "long", "mean", "means", "layer")
    yield windows(
        "long windows, means, one share of mass", "study", "long", "mean", "means", "mass"
    )
    yield windows(
        "long windows, means, parts of the next best", "study", "long", "mean", "means", finer=1.0
    )
    yield windows("nearest cubes, means", "study", "cube", "near", "means")
    yield windows("temporal band of long windows, means", "study", "long", "place", "means")
    yield windows("random blocks, dropped", "bound", "raster", "random", "drop")
    yield windows("random long windows, means", "bound", "long", "random", "means")
    yield windows("long windows, true mass, means", "bound", "long", "mass", "means")
