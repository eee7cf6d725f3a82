"""Rules that start from ARM's kinds and give some of them other masks or another method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.fidelity.choice import Choice
from benchmarks.fidelity.configs import Config
from benchmarks.fidelity.masks import density
from rainfusion_trt import HeadPlan, classify_heads, rainfusion_attention
from rainfusion_trt.operator.geometry import Kind, TokenLayout


@dataclass
class Classified:
    """ARM's kinds, with the masks that are given."""

    layout: TokenLayout
    config: Config
    masks: Mapping[int, Tensor]
    _shares: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self._shares = {code: density(mask) for code, mask in self.masks.items()}

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Choice, Tensor]:
        plan = _plan(q, k, self.layout, self.config)
        choice = Choice(plan.kind, self.masks)
        return choice, choice.density(self._shares)


class TwoMethods:
    """Textural heads by another method of the operator than the other heads."""

    def __init__(self, code: Tensor, arguments: dict[str, Any], textural: str) -> None:
        self.code = code
        self.arguments = arguments
        self.textural = textural

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The operator's attention, each head from the call of its method."""
        out = rainfusion_attention(q, k, v, **self.arguments)
        other = rainfusion_attention(q, k, v, **{**self.arguments, "method": self.textural})
        return torch.where((self.code == Kind.TEXTURAL)[..., None, None], other, out)


@dataclass
class TexturalBlocks:
    """ARM's kinds; textural heads take the best blocks of `rainfusion2`."""

    layout: TokenLayout
    config: Config

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[TwoMethods, Tensor]:
        plan = _plan(q, k, self.layout, self.config)
        blocks = _plan(q, k, self.layout, self.config, method="rainfusion2")
        density = torch.where(plan.kind == Kind.TEXTURAL, blocks.density, plan.density)
        arguments = {"grid": self.layout.grid} | self.config.arguments(self.layout)
        return TwoMethods(plan.kind, arguments, "rainfusion2"), density


def _plan(q: Tensor, k: Tensor, layout: TokenLayout, config: Config, **changes: Any) -> HeadPlan:
    return classify_heads(q, k, layout.grid, **(config.arguments(layout) | changes))
