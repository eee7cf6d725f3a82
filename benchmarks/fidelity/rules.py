"""Attention that the operator does not offer: ablations, baselines and variants of the contract.

A rule chooses a mask for every head of a call. All of them run as PyTorch's attention with a mask,
which is exact and slow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.fidelity.choice import Choice, Rule
from benchmarks.fidelity.classified import Classified, TexturalBlocks
from benchmarks.fidelity.configs import Config
from benchmarks.fidelity.masks import (
    density,
    kind_mask,
    kind_of_share,
    pairs_mask,
    random_mask,
    share_mask,
    shifted_textural_mask,
    window_of_share,
    without_sink_frames,
)
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, band_of

SAMPLED_QUERIES = 64  # of the SVG rule; its authors sample about one per cent
_KINDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)


@dataclass
class FixedMask:
    """One mask for all heads."""

    mask: Tensor
    code: int = 0
    _share: float = field(init=False)

    def __post_init__(self) -> None:
        self._share = density(self.mask)

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Choice, Tensor]:
        code = torch.full(q.shape[:2], self.code, dtype=torch.int32, device=q.device)
        choice = Choice(code, {self.code: self.mask})
        return choice, choice.density({self.code: self._share})


@dataclass
class RandomBlocks:
    """Random blocks at a share of pairs, drawn anew for every head of every call."""

    layout: TokenLayout
    shape: BlockShape
    share: float
    generator: torch.Generator

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Choice, Tensor]:
        heads = q.shape[1]
        masks = {
            h: random_mask(self.layout, self.shape, self.share, self.generator)
            for h in range(heads)
        }
        code = torch.arange(heads, device=q.device, dtype=torch.int32).expand(q.shape[:2])
        choice = Choice(code, masks)
        return choice, choice.density({h: density(mask) for h, mask in masks.items()})


@dataclass
class SampledError:
    """SVG's rule (arXiv 2502.01776): the mask with the least error over sampled queries."""

    masks: Mapping[int, Tensor]
    generator: torch.Generator
    _shares: dict[int, float] = field(init=False)

    def __post_init__(self) -> None:
        self._shares = {code: density(mask) for code, mask in self.masks.items()}

    def choose(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Choice, Tensor]:
        tokens = q.shape[2]
        rows = torch.randperm(tokens, generator=self.generator, device=q.device)[:SAMPLED_QUERIES]
        keys, values = k.float(), v.float()
        scores = q[:, :, rows].float() @ keys.mT / q.shape[-1] ** 0.5
        wanted = scores.softmax(-1) @ values
        errors = []
        for mask in self.masks.values():
            got = scores.masked_fill(~mask[rows], -torch.inf).softmax(-1) @ values
            errors.append((got - wanted).square().mean((2, 3)))
        codes = torch.tensor(list(self.masks), device=q.device, dtype=torch.int32)
        choice = Choice(codes[torch.stack(errors).argmin(0)], self.masks)
        return choice, choice.density(self._shares)


def rule_for(
    config: Config,
    layout: TokenLayout,
    shape: BlockShape,
    share: float | None,
    device: torch.device,
    seed: int = 0,
) -> Rule:
    """The rule of a configuration that the operator does not run.

    Parameters
    ----------
    config : Config
        Ablation, baseline or variant of the contract.
    layout : TokenLayout
        With the configuration's sink frames.
    shape : BlockShape
        The operator's, for the heads' size.
    share : float, optional
        Share of pairs that baselines are to compute.
    device : torch.device
        Device of the masks.
    seed : int
        Seed of the baselines' random choices.
    """
    s, method = config.sparsity, config.method
    masks = {int(kind): kind_mask(layout, shape, kind, s, device) for kind in _KINDS}
    only = {f"{kind.name.lower()} only": kind for kind in _KINDS}
    if method in only:
        return FixedMask(masks[only[method]], int(only[method]))
    if method == "textural dense":
        masks[Kind.TEXTURAL] = kind_mask(layout, shape, Kind.DENSE, s, device)
        return Classified(layout, config, masks)
    narrow = (Kind.SPATIAL, Kind.TEMPORAL)
    if method == "exact pairs":
        masks |= {int(kind): pairs_mask(layout, kind, band_of(s), device) for kind in narrow}
        return Classified(layout, config, masks)
    if method == "any pair":
        masks |= {
            int(kind): share_mask(layout, shape, kind, band_of(s), 0.0, device) for kind in narrow
        }
        return Classified(layout, config, masks)
    if method == "textural shifted":
        masks[Kind.TEXTURAL] = shifted_textural_mask(layout, shape, s, device)
        return Classified(layout, config, masks)
    if method == "textural blocks":
        return TexturalBlocks(layout, config)
    if method == "place-major":
        kind = Kind.TEMPORAL
        masks[kind] = share_mask(layout, shape, kind, band_of(s), 0.5, device, place_major=True)
        return Classified(layout, config, masks)
    if share is None:
        raise InvalidInputError(f"{config.name}: a baseline needs the density it is to match")
    generator = torch.Generator(device).manual_seed(seed)
    if method == "random blocks":
        return RandomBlocks(layout, shape, share, generator)
    if method == "window":
        return FixedMask(window_of_share(without_sink_frames(layout), share, device))
    if method == "window and sink":
        return FixedMask(window_of_share(layout, share, device))
    if method == "svg":
        return SampledError(
            {int(kind): kind_of_share(layout, shape, kind, share, device) for kind in narrow},
            generator,
        )
    raise InvalidInputError(f"no rule is called {method!r}")
