"""Finds the self-attentions of a transformer, and the lists of blocks that they lie in."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.routing.own_module import OwnModule
from rainfusion_trt.routing.site import Site
from rainfusion_trt.routing.state import Routing


def find_sites(transformer: nn.Module, routing: Routing) -> list[Site]:
    """The self-attentions of a transformer, which it still has as they were.

    None for a transformer that is not built of diffusers' attention modules.
    """
    from rainfusion_trt.routing.processors import routed_class  # diffusers takes seconds

    kind = type(transformer).__name__
    modules = dict(transformer.named_modules())
    found = {n: m for n, m in modules.items() if routing.model.is_self_attention(n, m)}
    # Where none has the name of the model's: those of a class of diffusers that is another.
    attentions = found or {n: m for n, m in modules.items() if hasattr(m, "processor")}
    processors = [attention.processor for attention in attentions.values()]
    is_of_model = isinstance(routing.model, OwnModule) or kind == routing.model.transformer_class
    if processors and not is_of_model and not any(map(routed_class, processors)):
        raise UnsupportedError(
            f"{kind} is not of {routing.model.name}: its attention is "
            f"{type(processors[0]).__name__}, which RainFusion does not know; say where its video "
            "is with grid= and text= instead of model=, or by a VideoModel of your own"
        )
    sites = []
    for name, attention in found.items():
        block = modules[name.rpartition(".")[0]]
        name = name.replace("_orig_mod.", "")
        original = attention.processor
        ours = routed_class(original)
        if ours is None:
            routing.refuse_dense(
                f"{name} of {kind} has the attention processor {type(original).__name__}, which "
                "RainFusion does not know; set diffusers' own one"
            )
        processor = None if ours is None else ours(original, routing, name)
        sites.append(Site(name, attention, block, processor))
    return sites


def block_rows(transformer: nn.Module, sites: Sequence[Site]) -> dict[str, int]:
    """The lists that hold the blocks of self-attentions, by name, and their lengths."""
    names = {site.name.rpartition(".")[0].rpartition(".")[0] for site in sites}
    modules = {name: transformer.get_submodule(name) for name in sorted(names)}
    return {name: len(m) for name, m in modules.items() if isinstance(m, nn.ModuleList)}
