"""Imports what workers of `process_group` need, once for all of them."""

import diffusers
from diffusers.hooks import context_parallel as context_parallel

from rainfusion_trt.models import model_names
from rainfusion_trt.routing import processors as processors

for _name in (
    "AllegroTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "WanTransformer3DModel",
):
    getattr(diffusers, _name)
assert model_names()
