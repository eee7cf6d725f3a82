"""List the runs of the study."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from benchmarks.fidelity.methods import METHODS
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings

if TYPE_CHECKING:
    from rainfusion_trt.operator.geometry import TokenLayout

SPARSITIES = (0.3, 0.5, 0.64, 0.8)
DENSE_FRACTIONS = (0.1, 0.0, 0.25)
SINK_FRAMES = (1, 0)
ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.95, 0.99)
MAIN_SPARSITY = 0.5
# Results are looked up by these values, which do not move with Python's defaults.
MAIN_SETTINGS = OPERATOR_V1_DEFAULTS
CONFIRMED_ALPHAS = (0.9, 0.8, 0.7)

# Attention that the operator does not offer, run as masked attention: name -> what it is.
ABLATIONS = {
    "spatial only": "every head spatial",
    "temporal only": "every head temporal",
    "textural only": "every head textural",
    "textural dense": "ARM as it is, textural heads computed in full",
}
BASELINES = {
    "random blocks": "what every kind keeps and random other blocks, drawn anew in every call",
    "window": "sliding window over the raster, text kept",
    "window and sink": "sliding window over the raster, text and first frame kept",
    "svg": "per head the better of spatial and temporal by the error of 64 sampled queries",
}
CONTRACT = {
    "exact pairs": "ARM as it is, spatial and temporal masks by token pairs instead of blocks",
    "any pair": "ARM as it is, a block is kept if any of its pairs is in the mask",
    "place-major": "ARM as it is, temporal heads on blocks of tokens sorted by place, then frame",
    "textural shifted": "ARM as it is, the checkerboard moved by one place from frame to frame",
    "textural blocks": "ARM as it is, textural heads take rainfusion2's best blocks",
}


@dataclass(frozen=True)
class Config:
    """One run over all seeds.

    Attributes
    ----------
    group : str
        "control", "methods", "ablations", "baselines" or "contract": the table it belongs to.
    method : str
        One of the operator's, or a key of `ABLATIONS`, `BASELINES` or `CONTRACT`.
    sparsity : float
        s; for baselines that of the `rainfusion` run whose realised density they match.
    dense_fraction : float
        Share of the steps that run dense at the start.
    sink_frames : int
        Leading frames that are sinks.
    alpha : float
        Recall from which a head counts as temporal or spatial.
    """

    group: str
    method: str
    sparsity: float
    dense_fraction: float = 0.1
    sink_frames: int = MAIN_SETTINGS.sink_frames
    alpha: float = MAIN_SETTINGS.alpha

    @property
    def name(self) -> str:
        """Unique among the study's runs."""
        return (
            f"{self.method} s={self.sparsity:g} dense={self.dense_fraction:g} "
            f"sink={self.sink_frames} alpha={self.alpha:g}"
        )

    @property
    def in_operator(self) -> bool:
        """Whether `rainfusion_trt.enable` runs it. The others are masked attention."""
        return self.method in METHODS

    @property
    def settings(self) -> AttentionSettings:
        """The operator's; a method that it lacks starts from the heads of `rainfusion`."""
        method = self.method if self.in_operator else MAIN_SETTINGS.method
        return MAIN_SETTINGS.replace(method=method, alpha=self.alpha, sink_frames=self.sink_frames)

    def arguments(self, layout: TokenLayout) -> dict[str, Any]:
        """Keyword arguments of one call of the operator over `layout`."""
        settings = self.settings.replace(text=layout.text, sink_frames=layout.sink_frames)
        return {"sparsity": self.sparsity, **settings.attributes()}


CONTROL = Config("control", "rainfusion", 0.0, 0.0)
KIND_MAP = Config("methods", "rainfusion", MAIN_SPARSITY, 0.0)  # kinds of all steps


def study_configs(sparsities: tuple[float, ...] = SPARSITIES) -> list[Config]:
    """All runs: first those that others depend on, last those that matter least."""
    configs = [CONTROL]
    configs += [Config("methods", "rainfusion", s) for s in sparsities]
    configs += _each("baselines", BASELINES, sparsities)
    configs += _each("ablations", ABLATIONS, sparsities)
    configs += _each("contract", CONTRACT, sparsities)
    configs += [Config("contract", "rainfusion", MAIN_SPARSITY, alpha=alpha) for alpha in ALPHAS]
    for fraction, sink, method, s in product(DENSE_FRACTIONS, SINK_FRAMES, METHODS, sparsities):
        configs.append(Config("methods", method, s, fraction, sink))
    return list(dict.fromkeys(configs))


def confirming_configs() -> list[Config]:
    """The runs that matter most, to be made with more seeds: methods and baselines at two s."""
    configs = [CONTROL]
    for s in (MAIN_SPARSITY, 0.64):
        configs += [Config("methods", "rainfusion", s, alpha=alpha) for alpha in CONFIRMED_ALPHAS]
        configs += [Config("methods", method, s) for method in ("rainfusion_plus", "rainfusion2")]
        configs += [
            Config("contract", "textural blocks", s, alpha=alpha) for alpha in CONFIRMED_ALPHAS
        ]
        configs += [Config("baselines", method, s) for method in BASELINES]
    return configs


def configs_of(sparsities: tuple[float, ...], groups: Collection[str]) -> list[Config]:
    """The runs of some groups, or all; baselines bring the runs whose density they match.

    Raises
    ------
    InvalidInputError
        No such group, or a sparsity outside (0, 1).
    """
    for s in sparsities:
        if not 0.0 < s < 1.0:
            raise InvalidInputError(f"sparsity={s} must be in (0, 1); dense runs come anyway")
    configs = study_configs(sparsities)
    known = list(dict.fromkeys(config.group for config in configs))
    for group in groups:
        if group not in known:
            raise InvalidInputError(f"group {group!r} is not one of {', '.join(known)}")
    matched = [Config("methods", "rainfusion", s) for s in sparsities if "baselines" in groups]
    return [c for c in configs if not groups or c.group in groups or c in matched]


def _each(group: str, methods: dict[str, str], sparsities: tuple[float, ...]) -> Iterator[Config]:
    for method, s in product(methods, sparsities):
        yield Config(group, method, s)
