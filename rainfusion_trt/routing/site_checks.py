"""What a forward shows of a transformer's self-attentions: still ours, run, and known.

`torch.compile` traces most of it with the forward: see `rainfusion_trt.routing.state`.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any

from torch import nn

from rainfusion_trt.routing.report import RoutingReport
from rainfusion_trt.routing.site import Site

if TYPE_CHECKING:
    from rainfusion_trt.routing.state import Routing


def check_sites(routing: Routing) -> None:
    """Before a forward: forget the one before, and see that all self-attentions are still ours."""
    backend = _common_backend(routing.sites)
    for site in routing.sites:
        site.entered = False
        if site.processor is None:
            continue
        site.processor.ran = False
        site.processor.dense = site.processor.left_out = False
        if not site.is_ours:
            kind = type(site.attention.processor).__name__
            routing.refuse_dense(
                f"{site.name} of {routing.kind} was given the attention processor {kind} after "
                "enable(); call disable(), then enable() again"
            )
        elif site.processor.backend_name() != backend:
            site.processor.dense = True
            routing.refuse_dense(
                f"{site.name} of {routing.kind} has an attention backend of its own, "
                f"{site.processor.backend_name()!r}, which RainFusion attention would replace; "
                "call transformer.set_attention_backend() for the whole transformer"
            )


def check_ran(routing: Routing) -> None:
    """After a forward: see that every self-attention of the blocks that ran was ours."""
    for site in routing.sites:
        ours = site.processor
        if ours is None or ours.ran or ours.left_out or not site.entered:
            continue
        if not _may_skip(site.attention) and not _may_skip(site.block):
            routing.refuse_dense(
                f"{site.name} of {routing.kind} did not run its attention processor, so that its "
                "attention is not RainFusion's; disable RainFusion, or leave that module's "
                "forward as it is"
            )


def check_blocks(routing: Routing, transformer: nn.Module) -> None:
    """After a forward: see that no block came since `enable`, in place of another or behind."""
    left_out = [site for site in routing.sites if not site.entered]
    longer = any(len(_row(transformer, name)) > rows for name, rows in routing.rows.items())
    if not longer and all(_may_skip(site.block) for site in left_out):
        return
    known = {id(site.attention) for site in routing.sites}
    for name, module in transformer.named_modules():
        if routing.model.is_self_attention(name, module) and id(module) not in known:
            routing.refuse_dense(
                f"{name} of {routing.kind} came after enable(), which does not know it; call "
                "disable(), then enable() again"
            )


def report_of(sites: Sequence[Site], *, dense_grid: bool) -> RoutingReport:
    """What the self-attentions of the latest forward were; all dense in a grid that is."""
    routed: list[str] = []
    dense: list[str] = []
    skipped: list[str] = []
    for site in sites:
        ours = site.processor if site.is_ours else None
        if ours is None:
            (dense if site.entered else skipped).append(site.name)
        elif not ours.ran:
            skipped.append(site.name)
        else:
            (dense if ours.dense or dense_grid else routed).append(site.name)
    return RoutingReport(tuple(routed), tuple(dense), tuple(skipped))


def _common_backend(sites: Sequence[Site]) -> str:
    """The backend that the self-attentions agree on, else diffusers' default."""
    names = [site.processor.backend_name() for site in sites if site.processor is not None]
    agree = all(name == names[0] for name in names)
    return names[0] if names and agree else "native"


def _row(transformer: nn.Module, name: str) -> Sized:
    """A list of blocks; an empty one where there is none of the name any more."""
    try:
        found: Any = transformer.get_submodule(name)
    except AttributeError:
        return ()
    return found if isinstance(found, nn.ModuleList) else ()


def _may_skip(module: nn.Module) -> bool:
    """Whether a hook of diffusers may give an earlier output of a module instead of running it."""
    registry = getattr(module, "_diffusers_hook", None)
    hooks = registry.hooks.values() if registry is not None else ()
    return any(hasattr(hook, "new_forward") for hook in hooks)
