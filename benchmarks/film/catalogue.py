"""The rules that are compared, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.film.kinds import KindRule
from benchmarks.film.rules import Rule, ShapeRule, WindowRule
from benchmarks.film.scene import ONLINE, Scene
from benchmarks.film.windows import Windows, boxes, runs

SPARSITIES = (0.8, 0.9, 0.64)


@dataclass(frozen=True)
class Entry:
    """A rule yet to be made; rules hold masks, so each lives only while it is measured."""

    name: str
    sparsity: float
    make: Callable[[], Rule]


@dataclass(frozen=True)
class Catalogue:
    """Makes the rules of one scene on one device."""

    scene: Scene
    device: torch.device

    def entries(self) -> Iterator[Entry]:
        """All rules: exact attention by the rules' own arithmetic, then every sparsity."""
        yield self._windows("everything kept", 0.0, "raster")
        if self.scene.longer:
            for sparsity in SPARSITIES:
                yield from self.of_shapes(sparsity)
            return
        for sparsity in SPARSITIES:
            yield from self.of_sparsity(sparsity)
        for sparsity in SPARSITIES:
            yield from self.later(sparsity)

    def of_shapes(self, s: float) -> Iterator[Entry]:
        """The rules for clips longer than those that the weights were trained on."""
        yield self._windows("RainFusion2", s, "raster")
        yield self._windows("raster, means", s, "raster", rest="means")
        for shape in self.scene.shapes:
            yield self._windows(f"{shape} boxes, means", s, shape, rest="means")
        yield self._mixed("long queries, cube keys, means", s, "long", "cube")
        yield self._mixed("cube queries, long keys, means", s, "cube", "long")
        yield self._windows("long boxes, sub, means", s, "long", "sub", "means")
        yield self._windows("cube boxes, sub, means", s, "cube", "sub", "means")
        yield self._windows("long boxes, nearest in place, means", s, "long", "place", "means")

    def later(self, s: float) -> Iterator[Entry]:
        """Rules that were not yet in the first two trainings."""
        yield self._windows("long boxes, means", s, "long", rest="means")
        yield self._mixed("long queries, cube keys, means", s, "long", "cube")
        yield self._mixed("cube queries, long keys, means", s, "cube", "long")
        yield self._windows("long boxes, dropped", s, "long")

    def of_sparsity(self, s: float) -> Iterator[Entry]:
        """All rules at one sparsity."""
        yield self._windows("RainFusion2", s, "raster")
        yield self._windows("raster, means", s, "raster", rest="means")
        yield self._windows("raster, first order", s, "raster", rest="first")
        yield self._windows("boxes, dropped", s, "cube")
        yield self._windows("boxes, means", s, "cube", rest="means")
        yield self._windows("boxes, first order", s, "cube", rest="first")
        yield self._windows("boxes, sub-window scores, means", s, "cube", "sub", "means")
        yield self._windows("boxes, sub-window scores, first order", s, "cube", "sub", "first")
        yield self._windows("boxes, true mass, first order", s, "cube", "mass", "first")
        yield self._kinds("all temporal, tokens", s, forced="temporal")
        yield self._windows("boxes, nearest in place, dropped", s, "cube", "place")
        yield self._windows("boxes, nearest in place, means", s, "cube", "place", "means")
        yield self._windows("boxes, nearest, means", s, "cube", "near", "means")
        for shape in self.scene.shapes:
            if shape != "cube":
                yield self._windows(f"{shape} boxes, sub, means", s, shape, "sub", "means")
        yield self._windows("boxes, covariance, first order", s, "cube", "covariance", "first")
        yield self._windows("boxes, threshold, means", s, "cube", "mean", "means", "layer")
        yield self._windows("boxes, sub, threshold, means", s, "cube", "sub", "means", "layer")
        yield self._kinds("RainFusion", s)
        yield self._kinds("RainFusion, textural with means", s, means=True)
        yield self._kinds("RainFusion, larger recall", s, fallback="larger")
        yield self._kinds("all textural, means", s, forced="textural", means=True)
        yield self._kinds("all textural", s, forced="textural")
        yield self._kinds("all spatial, tokens", s, forced="spatial")
        yield self._windows("random blocks, dropped", s, "raster", "random")
        yield self._windows("random boxes, means", s, "cube", "random", "means")
        yield self._online("shape of a head, sub, means", s)
        yield self._windows("long boxes, nearest in place, means", s, "long", "place", "means")
        yield self._windows("raster, sub-block scores, means", s, "raster", "sub", "means")
        yield self._windows("boxes, covariance, means", s, "cube", "covariance", "means")
        yield self._windows("boxes, true mass, means", s, "cube", "mass", "means")
        yield self._windows("boxes, true mass, dropped", s, "cube", "mass")

    def cut(self, shape: str) -> tuple[Windows, Windows]:
        """Query and key windows: ``raster`` or a name of ``Scene.shapes``."""
        grid = self.scene.free_grid
        if shape == "raster":
            queries, keys = (runs(grid, size, self.device) for size in self.scene.tile)
        else:
            queries, keys = (boxes(grid, s, self.device) for s in self.scene.shapes[shape])
        return queries, keys

    def _windows(
        self,
        name: str,
        sparsity: float,
        shape: str,
        score: str = "mean",
        rest: str = "drop",
        spread: str = "row",
    ) -> Entry:
        def make() -> Rule:
            cut = self.cut(shape)
            return WindowRule(name, sparsity, self.scene, *cut, score, rest, spread)

        return Entry(name, sparsity, make)

    def _mixed(self, name: str, sparsity: float, queries: str, keys: str) -> Entry:
        """Query windows of one shape, key windows of another, scores and rest by means."""

        def make() -> Rule:
            cut = self.cut(queries)[0], self.cut(keys)[1]
            return WindowRule(name, sparsity, self.scene, *cut, "mean", "means")

        return Entry(name, sparsity, make)

    def _online(self, name: str, sparsity: float) -> Entry:
        def make() -> Rule:
            choices = {
                shape: WindowRule(
                    shape, sparsity, self.scene, *self.cut(shape), score="sub", rest="means"
                )
                for shape in ONLINE
            }
            return ShapeRule(name, sparsity, choices)

        return Entry(name, sparsity, make)

    def _kinds(
        self,
        name: str,
        sparsity: float,
        forced: str | None = None,
        fallback: str = "textural",
        means: bool = False,
    ) -> Entry:
        def make() -> Rule:
            windows = self.cut("cube")[1] if means else None
            return KindRule(
                name,
                sparsity,
                self.scene,
                self.device,
                forced=forced,
                fallback=fallback,
                windows=windows,
            )

        return Entry(name, sparsity, make)
