"""Measure errors of single attention calls on q, k and v of the trained model, mid-denoising."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.fidelity.choice import Choice
from benchmarks.fidelity.classified import Classified
from benchmarks.fidelity.configs import (
    ABLATIONS,
    BASELINES,
    CONTRACT,
    MAIN_SPARSITY,
    SPARSITIES,
    Config,
)
from benchmarks.fidelity.masks import kind_mask
from benchmarks.fidelity.methods import METHODS
from benchmarks.fidelity.rules import FixedMask, rule_for
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.operator.geometry import (
    BlockShape,
    Kind,
    TokenLayout,
    band_of,
    block_shape,
    pair_mask,
)
from rainfusion_trt.operator.plan import HeadPlan

Row = dict[str, Any]
_MAIN = Config("methods", "rainfusion", MAIN_SPARSITY)
MAP_CELLS = 261  # rows and columns of a saved attention map
_KINDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)


@dataclass(frozen=True)
class Call:
    """q, k and v [B, N, S, D] of one layer, and their dense attention in float32."""

    layer: int
    step: int
    q: Tensor
    k: Tensor
    v: Tensor
    dense: Tensor

    @classmethod
    def of(cls, layer: int, step: int, q: Tensor, k: Tensor, v: Tensor) -> Call:
        dense = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
        return cls(layer, step, q, k, v, dense)

    @property
    def shape(self) -> BlockShape:
        """The operator's blocks."""
        return block_shape(self.q.shape[-1])

    def error(self, out: Tensor) -> float:
        """Relative error over all heads."""
        return ((out.float() - self.dense).norm() / self.dense.norm()).item()

    def error_per_head(self, out: Tensor) -> Tensor:
        """Relative error [B, N]."""
        difference = (out.float() - self.dense).flatten(2).norm(dim=2)
        return difference / self.dense.flatten(2).norm(dim=2)


def measure(call: Call, layout_of: Callable[[int], TokenLayout], seed: int = 0) -> Iterator[Row]:
    """Rows of one layer: every method, ablation, baseline and variant, then ARM's own checks.

    `layout_of` gives the tokens for a number of sink frames.
    """
    layout = layout_of(1)
    plain = F.scaled_dot_product_attention(call.q, call.k, call.v)
    yield _row(call, Config("control", "dense", 0.0), plain, 1.0)
    shares = {}
    for sink_frames in (1, 0):
        for method in METHODS:
            for s in SPARSITIES:
                config = Config("methods", method, s, 0.0, sink_frames)
                out, plan = run_operator(call, config, layout_of(sink_frames))
                share = plan.density.double().mean().item()
                if (method, sink_frames) == (_MAIN.method, _MAIN.sink_frames):
                    shares[s] = share
                yield _row(call, config, out, share) | _kind_shares(plan.kind)
    others = {"ablations": ABLATIONS, "baselines": BASELINES, "contract": CONTRACT}
    for group, methods in others.items():
        for method in methods:
            config = Config(group, method, MAIN_SPARSITY, 0.0)
            share = shares[MAIN_SPARSITY]
            rule = rule_for(config, layout, call.shape, share, call.q.device, seed)
            choice, density = rule.choose(call.q, call.k, call.v)
            out = choice.attend(call.q, call.k, call.v)
            yield _row(call, config, out, density.double().mean().item())
    yield best_kinds(call, layout)
    yield masked_check(call, layout)
    yield sample_check(call, layout)


def run_operator(call: Call, config: Config, layout: TokenLayout) -> tuple[Tensor, HeadPlan]:
    """The operator's output and plan."""
    arguments = config.arguments(layout)
    out = rainfusion_attention(call.q, call.k, call.v, layout.grid, **arguments)
    return out, classify_heads(call.q, call.k, layout.grid, **arguments)


def best_kinds(call: Call, layout: TokenLayout) -> Row:
    """Every head as the kind with the least error at the main sparsity, and how often ARM agrees.

    No user could run this rule: it needs the dense output.
    """
    masks = _masks(call, layout)
    errors = []
    for code, mask in masks.items():
        choice, _ = FixedMask(mask, code).choose(call.q, call.k, call.v)
        errors.append(call.error_per_head(choice.attend(call.q, call.k, call.v)))
    codes = torch.tensor(list(masks), device=call.q.device, dtype=torch.int32)
    best = Choice(codes[torch.stack(errors).argmin(0)], masks)
    share = best.density({code: mask.float().mean().item() for code, mask in masks.items()})
    config = Config("arm", "best kind", MAIN_SPARSITY, 0.0)
    out = best.attend(call.q, call.k, call.v)
    plan = _plan(call, layout)
    agreement = (plan.kind == best.code).double().mean().item()
    row = _row(call, config, out, share.double().mean().item())
    return row | _kind_shares(best.code) | {"agreement": round(agreement, 4)}


def masked_check(call: Call, layout: TokenLayout) -> Row:
    """The operator against masked attention of the same kinds: the effect of arithmetic alone."""
    config = Config("control", "rainfusion", MAIN_SPARSITY, 0.0)
    out, plan = run_operator(call, config, layout)
    masks = _masks(call, layout)
    choice, density = Classified(layout, config, masks).choose(call.q, call.k, call.v)
    masked = choice.attend(call.q, call.k, call.v).float()
    difference = ((out.float() - masked).norm() / masked.norm()).item()
    return {
        "group": "control",
        "method": "operator against masked attention",
        "layer": call.layer,
        "step": call.step,
        "sparsity": MAIN_SPARSITY,
        "relative_error": difference,
        "density_difference": (plan.density - density).abs().max().item(),
    }


def sample_check(call: Call, layout: TokenLayout) -> Row:
    """ARM's recalls on its samples beside those over all non-sink tokens."""
    plan = _plan(call, layout)
    temporal, spatial = full_recalls(call.q, call.k, layout, MAIN_SPARSITY)
    kind = torch.full_like(plan.kind, int(Kind.TEXTURAL))
    kind[spatial >= _MAIN.alpha] = int(Kind.SPATIAL)
    kind[temporal >= _MAIN.alpha] = int(Kind.TEMPORAL)
    return {
        "group": "arm",
        "method": "sample against all tokens",
        "layer": call.layer,
        "step": call.step,
        "sparsity": MAIN_SPARSITY,
        "agreement": round((kind == plan.kind).double().mean().item(), 4),
        "recall_temporal": _list(plan.recall_temporal),
        "recall_temporal_all": _list(temporal),
        "recall_spatial": _list(plan.recall_spatial),
        "recall_spatial_all": _list(spatial),
    }


def full_recalls(
    q: Tensor, k: Tensor, layout: TokenLayout, sparsity: float
) -> tuple[Tensor, Tensor]:
    """Temporal and spatial recall [B, N] over all non-sink tokens, float32."""
    part = slice(layout.free_begin, layout.free_begin + layout.free_tokens)
    tokens = torch.arange(layout.free_tokens, device=q.device)
    masks = [
        pair_mask(layout, kind, band_of(sparsity), tokens[:, None], tokens)
        for kind in (Kind.TEMPORAL, Kind.SPATIAL)
    ]
    recalls = torch.empty(2, *q.shape[:2], device=q.device)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            scores = q[b, h, part].float() @ k[b, h, part].float().T / q.shape[-1] ** 0.5
            mass = scores.softmax(-1)
            for index, mask in enumerate(masks):
                recalls[index, b, h] = (mass * mask).sum(-1).mean()
    return recalls[0], recalls[1]


def attention_maps(calls: list[Call], layout: TokenLayout) -> dict[str, Tensor]:
    """Attention of the clearest head of each kind that occurs, and the part that the kind keeps.

    Returns
    -------
    dict of str to Tensor
        ``attention.<kind>``, float32 [cells, cells], mean probabilities of all tokens, row by row
        of cells; ``kept.<kind>``, the share of kept pairs; ``head.<kind>``, int32 (layer, head).
    """
    found: dict[Kind, tuple[float, Call, int, int]] = {}
    for call in calls:
        plan = _plan(call, layout)
        sure = {
            Kind.SPATIAL: plan.recall_spatial,
            Kind.TEMPORAL: plan.recall_temporal,
            Kind.TEXTURAL: -torch.maximum(plan.recall_spatial, plan.recall_temporal),
        }
        for b, h in torch.cartesian_prod(*map(torch.arange, plan.kind.shape)).tolist():
            kind = Kind(int(plan.kind[b, h]))
            if kind in sure and sure[kind][b, h].item() > found.get(kind, (-2.0,))[0]:
                found[kind] = (sure[kind][b, h].item(), call, b, h)
    maps = {}
    for kind, (_, call, b, h) in found.items():
        name = kind.name.lower()
        scores = call.q[b, h].float() @ call.k[b, h].float().T / call.q.shape[-1] ** 0.5
        maps[f"attention.{name}"] = _pooled(scores.softmax(-1))
        mask = kind_mask(layout, call.shape, kind, MAIN_SPARSITY, call.q.device)
        maps[f"kept.{name}"] = _pooled(mask.float())
        maps[f"head.{name}"] = torch.tensor([call.layer, h], dtype=torch.int32)
    return maps


def _pooled(values: Tensor) -> Tensor:
    cells = min(MAP_CELLS, values.shape[0])
    return F.adaptive_avg_pool2d(values[None], cells)[0].cpu()


def _masks(call: Call, layout: TokenLayout) -> dict[int, Tensor]:
    """Mask of each kind at the main sparsity."""
    return {
        int(kind): kind_mask(layout, call.shape, kind, MAIN_SPARSITY, call.q.device)
        for kind in _KINDS
    }


def _plan(call: Call, layout: TokenLayout) -> HeadPlan:
    return classify_heads(call.q, call.k, layout.grid, **_MAIN.arguments(layout))


def _row(call: Call, config: Config, out: Tensor, share: float) -> Row:
    return {
        "group": config.group,
        "method": config.method,
        "layer": call.layer,
        "step": call.step,
        "sparsity": config.sparsity,
        "sink_frames": config.sink_frames,
        "density": round(share, 4),
        "relative_error": float(f"{call.error(out):.5g}"),
    }


def _kind_shares(kind: Tensor) -> Row:
    return {k.name.lower(): round((kind == k).double().mean().item(), 4) for k in _KINDS}


def _list(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.flatten().tolist()]
