"""Attention processors of diffusers with RainFusion attention in the place of theirs.

Each computes q, k and v as the diffusers processor whose name it has, line by line in the same
order, so that a sparsity of 0 gives what diffusers gives. They differ in three points: attention is
the operator, its mask is a length, and text and video stay where they are.
"""

from __future__ import annotations

from rainfusion_trt.routing.processors.allegro import RoutedAllegro
from rainfusion_trt.routing.processors.base import RoutedProcessor
from rainfusion_trt.routing.processors.cogvideox import RoutedCogVideoX, RoutedFusedCogVideoX
from rainfusion_trt.routing.processors.cosmos import RoutedCosmos
from rainfusion_trt.routing.processors.hunyuan import RoutedHunyuanVideo, RoutedHunyuanVideo15
from rainfusion_trt.routing.processors.kandinsky import RoutedKandinsky5
from rainfusion_trt.routing.processors.ltx import RoutedLtx, RoutedLtx2, RoutedLtx2Perturbed
from rainfusion_trt.routing.processors.minimax import RoutedMiniMaxH3
from rainfusion_trt.routing.processors.wan import RoutedWan

__all__ = ["RoutedProcessor", "routed_class"]

_ROUTED: dict[str, type[RoutedProcessor]] = {
    "AllegroAttnProcessor2_0": RoutedAllegro,
    "CogVideoXAttnProcessor2_0": RoutedCogVideoX,
    "CosmosAttnProcessor2_0": RoutedCosmos,
    "FusedCogVideoXAttnProcessor2_0": RoutedFusedCogVideoX,
    "HunyuanVideo15AttnProcessor2_0": RoutedHunyuanVideo15,
    "HunyuanVideoAttnProcessor2_0": RoutedHunyuanVideo,
    "Kandinsky5AttnProcessor": RoutedKandinsky5,
    "LTX2AudioVideoAttnProcessor": RoutedLtx2,
    "LTX2PerturbedAttnProcessor": RoutedLtx2Perturbed,
    "LTXVideoAttnProcessor": RoutedLtx,
    "MiniMaxH3AttnProcessor": RoutedMiniMaxH3,
    "SkyReelsV2AttnProcessor": RoutedWan,  # the same for self-attention
    "WanAttnProcessor": RoutedWan,
}


def routed_class(processor: object) -> type[RoutedProcessor] | None:
    """Ours for a processor of diffusers; None for one that we know nothing of."""
    kind = type(processor)
    ours = _ROUTED.get(kind.__name__)
    return ours if kind.__module__.startswith("diffusers.") else None
