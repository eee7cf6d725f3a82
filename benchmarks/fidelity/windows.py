"""Windows on the demo model: the package's tiles, and small blocks in the reference.

A frame of the demo's scene is less than two tiles of the package, so that windows of their size
span most of it. Blocks of about 48 x 32 are as small against this scene as tiles are at 720p.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.fidelity.configs import Config
from benchmarks.fidelity.metrics import Scorer
from benchmarks.fidelity.sampling import Result, Sampler
from benchmarks.fidelity.study import scores
from benchmarks.film.catalogue import Catalogue
from benchmarks.film.equal import match
from benchmarks.film.rules import WindowRule, costs
from benchmarks.film.scene import Scene
from benchmarks.film.scores import Heads
from rainfusion_trt import classify_heads
from rainfusion_trt.operator.geometry import TokenLayout

logger = logging.getLogger("rainfusion_trt.fidelity")
Row = dict[str, Any]
Calls = Sequence[tuple[Tensor, Tensor, Tensor]]
SMALL = (48, 32)
METHODS = ("piecewise", "rainfusion2")  # the first sets the density of the package's tiles


def small_scene(layout: TokenLayout, heads: int, layers: int, head_size: int) -> Scene:
    """The demo's tokens cut into small blocks."""
    return Scene(
        grid=layout.grid,
        coarse=layout.grid,
        tile=SMALL,
        shapes={
            "cube": ((3, 4, 4), (2, 4, 4)),
            "same": ((3, 4, 4), (3, 4, 4)),
            "long": ((12, 2, 2), (12, 1, 2)),
        },
        text=layout.tokens - layout.grid[0] * layout.grid[1] * layout.grid[2],
        heads=heads,
        layers=layers,
        head_size=head_size,
    )


@dataclass(frozen=True)
class SmallRule:
    """A rule on small blocks; the first sets the density of all."""

    name: str
    shape: str
    score: str = "mean"
    rest: str = "means"


SMALL_RULES = (
    SmallRule("windows 3x4x4 / 2x4x4, means", "cube"),
    SmallRule("rainfusion2", "raster", rest="drop"),
    SmallRule("raster, means", "raster"),
    SmallRule("raster, first order", "raster", rest="first"),
    SmallRule("raster, covariance scores, first order (PISA)", "raster", "covariance", "first"),
    SmallRule("windows 3x4x4 / 2x4x4, dropped", "cube", rest="drop"),
    SmallRule("windows 3x4x4 / 2x4x4, first order", "cube", rest="first"),
    SmallRule("windows 3x4x4 / 2x4x4, sub-window scores, means", "cube", "sub"),
    SmallRule("windows 3x4x4 / 3x4x4, means", "same"),
    SmallRule(
        "windows 3x4x4 / 3x4x4, covariance scores, first order", "same", "covariance", "first"
    ),
    SmallRule("windows 12x2x2 / 12x1x2, means", "long"),
)


class _Kept:
    """What a rule keeps in one call of a batch."""

    def __init__(self, rule: WindowRule, q: Tensor, k: Tensor, v: Tensor) -> None:
        flat = [x.flatten(0, 1).float() for x in (q, k, v)]
        self.rule = rule
        self.heads = Heads(flat[0], flat[1], flat[2], rule.scene.sinks)
        self.kept = rule.choose(rule.scores(self.heads))
        self.code = torch.zeros(q.shape[:2], dtype=torch.int32, device=q.device)

    def density(self) -> float:
        """Share of pairs, pseudo-keys counted."""
        rule = self.rule
        return costs(rule.scene, rule.queries, rule.keys, self.kept, rule.rest)[1]

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The rule's attention [B, N, S, D]."""
        return self.rule.run(self.heads, self.kept, q.dtype).view(q.shape)


@dataclass(frozen=True)
class SmallBlocks:
    """A window rule as a choice for the heads of a batch, each by itself."""

    rule: WindowRule

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[_Kept, Tensor]:
        kept = _Kept(self.rule, q, k, v)
        return kept, torch.full(q.shape[:2], kept.density(), device=q.device)


def operator_density(calls: Calls, layout: TokenLayout, config: Config, s: float) -> float:
    """Mean density of the operator over captured calls."""
    arguments = config.arguments(layout) | {"sparsity": s}
    plans = [classify_heads(q, k, layout.grid, **arguments) for q, k, _ in calls]
    return sum(float(plan.density.mean()) for plan in plans) / len(plans)


def small_density(calls: Calls, make: Callable[[float], WindowRule], s: float) -> float:
    """Mean density of a rule on small blocks over captured calls."""
    return sum(_Kept(make(s), *call).density() for call in calls) / len(calls)


def measure_windows(
    sampler: Sampler, sparsity: float, workers: int, dense_fraction: float = 0.1
) -> Iterator[Row]:
    """Every method and rule over all seeds, at the densities of the first of its kind.

    The operator is compared with its own dense videos, the reference with those of diffusers'
    attention: what runs dense in the first steps is the same kernel on both sides.
    """
    calls = sampler.capture(sampler.steps // 2)
    layout = sampler.layout(1)

    def config(method: str, s: float) -> Config:
        return Config("windows", method, s, dense_fraction)

    control = sampler.operator(Config("control", METHODS[0], 0.0, 0.0)).latents
    plain = sampler.dense()
    scorer = Scorer(sampler.folder / "vae", control, workers)
    floor = [future.result() for future in scorer.submit(plain)]
    yield {"rule": "dense, PyTorch's", "blocks": "", "sparsity": 0.0, "density": 1.0} | scores(
        floor
    )
    wanted = operator_density(calls, layout, config(METHODS[0], sparsity), sparsity)
    for method in METHODS:
        realised = partial(operator_density, calls, layout, config(method, sparsity))
        own = sparsity if method == METHODS[0] else match(realised, wanted, sparsity).sparsity
        result = sampler.operator(config(method, own))
        yield _row(method, "the package's", sparsity, own, result, scorer)
    scorer.close()

    model = sampler.transformer.config
    scene = small_scene(
        layout, model.num_attention_heads, model.num_layers, model.attention_head_dim
    )
    catalogue = Catalogue(scene, sampler.device)
    scorer = Scorer(sampler.folder / "vae", plain, workers)
    wanted = 0.0
    for rule in SMALL_RULES:

        def make(s: float, rule: SmallRule = rule) -> WindowRule:
            cut = catalogue.cut(rule.shape)
            return WindowRule(rule.name, s, scene, *cut, rule.score, rule.rest)

        if not wanted:
            own, wanted = sparsity, small_density(calls, make, sparsity)
        else:
            own = match(partial(small_density, calls, make), wanted, sparsity).sparsity
        result = sampler.masked(config(rule.name, sparsity), SmallBlocks(make(own)))
        yield _row(rule.name, "48 x 32", sparsity, own, result, scorer)
    scorer.close()


def _row(
    rule: str, blocks: str, sparsity: float, own: float, result: Result, scorer: Scorer
) -> Row:
    found = [future.result() for future in scorer.submit(result.latents)]
    share = result.sparse_density
    row: Row = {
        "rule": rule,
        "blocks": blocks,
        "sparsity": sparsity,
        "own_sparsity": own,
        "density": None if share is None else round(share, 4),
        "density_of_all_steps": round(result.density, 4),
    } | scores(found)
    logger.info("%s, blocks %s: density %s, %.2f dB", rule, blocks, row["density"], row["psnr"])
    return row
