"""``enable`` and ``disable``: RainFusion attention in a diffusers transformer, in PyTorch.

Every self-attention over the video gets a processor of ours in the place of its own one, and hooks
around the transformer's forward tell the processors what they attend over. Nothing else of the
transformer changes, so that ``torch.compile`` traces it as it is, and offloading, caches and
context parallelism work as without. An export captures attention by another way, `AttentionRoute`.
"""

from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.routing.compiled import compile_blocks, uncompile_blocks
from rainfusion_trt.routing.lengths import survey
from rainfusion_trt.routing.parallel_plan import cp_plan
from rainfusion_trt.routing.report import RoutingReport
from rainfusion_trt.routing.route import AttentionRoute
from rainfusion_trt.routing.state import Routing
from rainfusion_trt.routing.switch import disable, enable, routing_of

__all__ = [
    "AttentionRoute",
    "AttentionSettings",
    "RainFusionSettings",
    "Routing",
    "RoutingReport",
    "compile_blocks",
    "cp_plan",
    "disable",
    "enable",
    "routing_of",
    "survey",
    "uncompile_blocks",
]

RainFusionSettings = AttentionSettings
"""The name of version 0.1."""
