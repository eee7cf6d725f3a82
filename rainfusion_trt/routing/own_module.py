"""What stands for a `VideoModel` where `enable` is told grid and text of a module by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from rainfusion_trt.models import AttentionLayout
from rainfusion_trt.models.base import is_self_attention
from rainfusion_trt.models.given import GivenPlace


class OwnModule:
    """A module with its place of the video; routing asks it what it asks a `VideoModel`.

    Its attentions get processors where all of them have one of diffusers' that we know, and
    nothing hides padding. Else those that reach ``F.scaled_dot_product_attention`` with the given
    number of tokens are taken: a module that is only partly known is not routed by halves.
    """

    timesteps_are_sigmas = False

    def __init__(self, module: nn.Module, place: GivenPlace) -> None:
        self.name = "the grid and text given to enable()"
        self.transformer_class = type(module).__name__
        self._place = place
        self._has_processors = place.kv_len is None and _all_known(module)

    def head_size(self, config: Mapping[str, Any]) -> int | None:
        return config.get("attention_head_dim")

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        return self._place.layout(forward_kwargs, _like(transformer, forward_kwargs))

    def check_lengths(self, layout: AttentionLayout, forward_kwargs: Mapping[str, Any]) -> None:
        """The numbers were given by hand: attention of these lengths is what is meant."""

    def is_self_attention(self, name: str, module: nn.Module) -> bool:
        return self._has_processors and is_self_attention(name, module)


def _all_known(module: nn.Module) -> bool:
    """Whether every attention that is not to the text is one that a processor of ours replaces."""
    own = [
        (name, part)
        for name, part in module.named_modules()
        if hasattr(part, "set_processor") and not getattr(part, "is_cross_attention", False)
    ]
    if not own:
        return False
    from rainfusion_trt.routing.processors import routed_class  # diffusers takes seconds

    return all(is_self_attention(n, p) and routed_class(p.processor) for n, p in own)


def _like(module: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """A tensor where the forward runs; parameters may lie elsewhere, by offloading."""
    for value in call.values():
        if isinstance(value, Tensor) and value.is_floating_point():
            return value
    return next(module.parameters())
