"""RainFusion's kinds of heads as token masks: spatial, temporal, textural, chosen by recall."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.film.attend import attend_dense, fast_products
from benchmarks.film.rules import CHUNK, Tally
from benchmarks.film.scene import Scene
from benchmarks.film.scores import Heads
from benchmarks.film.windows import Windows
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS

SAMPLE = 1024


@dataclass
class KindRule:
    """Each head is temporal, spatial or textural, by the recall of the first two on a sample.

    Attributes
    ----------
    forced
        A kind that all heads have, instead of the choice.
    fallback
        The kind of a head when no recall reaches ``alpha``: ``textural``, or ``larger``: the kind
        with the larger recall.
    windows
        If given, the tokens that a textural head leaves out count by the mean of those in each of
        these windows.
    """

    name: str
    sparsity: float
    scene: Scene
    device: torch.device | str = "cpu"
    alpha: float = OPERATOR_V1_DEFAULTS.alpha
    forced: str | None = None
    fallback: str = "textural"
    windows: Windows | None = None
    tally: Tally = field(default_factory=Tally)
    _costs: dict[str, tuple[float, float, float]] = field(default_factory=dict, repr=False)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        heads = Heads(q, k, v, self.scene.sinks)
        kinds = [self.forced] * len(q) if self.forced else self.classify(heads)
        out = torch.empty_like(q)
        totals = torch.zeros(3, dtype=torch.float64)
        for kind in sorted(set(kinds)):
            index = torch.tensor([i for i, k in enumerate(kinds) if k == kind], device=q.device)
            if kind not in self._costs:
                self._costs[kind] = self.costs(kind)
            totals += torch.tensor(self._costs[kind], dtype=torch.float64) * len(index) / len(q)
            self.tally.count_kind(kind, len(index))
            out[index] = self._run(kind, heads.pick(index))
        self.tally.add(*totals.tolist())
        return out

    @property
    def band(self) -> float:
        return round(1 - math.sqrt(self.sparsity), 6)

    @property
    def stride(self) -> int:
        return max(2, round(round(1 / (1 - self.sparsity), 4)))

    @cached_property
    def checkered(self) -> Tensor:
        """bool [n]: the tokens that a textural head keeps."""
        place = torch.arange(self.scene.free, device=self.device) % self.scene.place
        width = self.scene.grid[2]
        return (place // width - place % width) % self.stride == 0

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """bool [n, S] of the two bands, sinks included."""
        raster = torch.arange(self.scene.free, device=self.device)
        masks = {kind: self.pairs(kind, raster) for kind in ("spatial", "temporal")}
        return {k: F.pad(mask, (self.scene.sinks, 0), value=True) for k, mask in masks.items()}

    def pairs(self, kind: str, raster: Tensor) -> Tensor:
        """bool: pairs of tokens, given by raster index, in the band of a kind."""
        if kind == "spatial":
            return (raster[:, None] - raster).abs() < self.band * self.scene.free
        place = raster % self.scene.place
        return (place[:, None] - place).abs() < self.band * self.scene.place

    def recall(self, heads: Heads, kind: str) -> Tensor:
        """Per head, the share of a sample's softmax mass inside the band of a kind."""
        place, width = self.scene.place, self.scene.grid[2]
        if kind == "temporal":
            sample = torch.arange(0, place, -(-place // SAMPLE), device=self.device)
        else:
            step = -(-self.scene.free // min(place, SAMPLE))
            while math.gcd(step, width) != 1:
                step += 1
            sample = torch.arange(0, self.scene.free, step, device=self.device)
        q, k = heads.free_q[:, sample].float(), heads.free_k[:, sample].float()
        mass = torch.softmax(q @ k.transpose(1, 2) * heads.scale, -1)
        return (mass * self.pairs(kind, sample)).sum(-1).mean(-1)

    def classify(self, heads: Heads) -> list[str]:
        """The kind of every head."""
        recalls = [self.recall(heads, kind).tolist() for kind in ("temporal", "spatial")]
        kinds = []
        for temporal, spatial in zip(*recalls, strict=True):
            if temporal >= self.alpha:
                kinds.append("temporal")
            elif spatial >= self.alpha:
                kinds.append("spatial")
            elif self.fallback == "larger":
                kinds.append("temporal" if temporal >= spatial else "spatial")
            else:
                kinds.append("textural")
        return kinds

    def _run(self, kind: str, heads: Heads) -> Tensor:
        out = torch.empty_like(heads.q)
        rows = slice(0, heads.sinks)
        out[:, rows] = attend_dense(heads, rows)
        if kind == "textural":
            for begin in range(0, len(heads), CHUNK):
                part = slice(begin, begin + CHUNK)
                out[part, heads.sinks :] = self._textural(heads.pick(part)).to(out.dtype)
        else:
            q, k, v = (x[None] for x in (heads.free_q, heads.k, heads.v))
            mask = self.masks[kind][None, None]
            out[:, heads.sinks :] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0]
        return out

    def _textural(self, heads: Heads) -> Tensor:
        kept = F.pad(self.checkered, (heads.sinks, 0), value=True).nonzero().flatten()
        k, v = heads.k[:, kept].float(), heads.v[:, kept].float()
        weight = k.new_zeros(k.shape[1])
        if self.windows is not None:
            left = ~self.checkered[self.windows.tokens]
            number = left.sum(1)
            sums = [
                (self.windows.gather(x.float()) * left[..., None]).sum(2)
                for x in (heads.free_k, heads.free_v)
            ]
            means = [(x / number[:, None].clamp(min=1)).to(heads.k.dtype).float() for x in sums]
            k, v = (torch.cat(pair, 1) for pair in zip((k, v), means, strict=True))
            weight = torch.cat([weight, number.float().log()])
        with fast_products():
            logits = (heads.free_q.float() * heads.scale) @ k.transpose(1, 2) + weight
            return torch.softmax(logits, -1) @ v

    def costs(self, kind: str) -> tuple[float, float, float]:
        """Share of real pairs, pseudo-keys counted too, and share of dense tiles."""
        scene = self.scene
        every, sinks, free = scene.tokens, scene.sinks, scene.free
        rows, columns = scene.tile
        pseudo = 0.0
        if kind == "textural":
            keys = int(self.checkered.sum())
            pairs = float(free * keys)
            tiles = -(-free // rows) * -(-keys // columns)
            if self.windows is not None:
                pseudo = float(free * self.windows.count)
                tiles += -(-free // rows) * -(-self.windows.count // columns)
        else:
            mask = self.masks[kind][:, sinks:]
            pairs = float(mask.sum())
            tiles = _half_full_tiles(mask, rows, columns)
        tiles += -(-free // rows) * -(-sinks // columns) + -(-sinks // rows) * -(-every // columns)
        exact = pairs + every * every - free * free
        dense = -(-every // rows) * -(-every // columns)
        return exact / every**2, (exact + pseudo) / every**2, tiles / dense


def _half_full_tiles(mask: Tensor, rows: int, columns: int) -> int:
    """Tiles of which at least half the pairs are in a mask: what the operator computes."""
    height, width = mask.shape
    if height % rows or width % columns:
        raise ValueError(f"tiles of {rows} x {columns} do not divide {height} x {width} tokens")
    counts = mask.view(height // rows, rows, width // columns, columns).sum((1, 3))
    return int((2 * counts >= rows * columns).sum())
