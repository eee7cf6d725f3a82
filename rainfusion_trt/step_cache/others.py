"""Caches of other packages inside a transformer, which a step cache around it cannot share."""

from __future__ import annotations

from typing import Any, NamedTuple

_HOOKS = ("_cache", "pyramid_attention_broadcast")  # ends of the modules of diffusers' caches


class Other(NamedTuple):
    """A cache of another package.

    Attributes
    ----------
    name
        In words.
    remedy
        How it is switched off.
    """

    name: str
    remedy: str


def other_cache(transformer: Any) -> Other | None:
    """What caches within a transformer: diffusers, or cache-dit; None for nothing that is known.

    Parameters
    ----------
    transformer
        What stands in a diffusers pipeline; may be compiled.
    """
    if getattr(transformer, "is_cache_enabled", False):
        kind = type(transformer._cache_config).__name__
        return Other(f"diffusers' {kind}", "call its disable_cache()")
    if getattr(transformer, "_is_cached", False):  # cache-dit's mark
        return Other("cache-dit", "call cache_dit.disable_cache(pipe)")
    for module in transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name, hook in (registry.hooks if registry is not None else {}).items():
            if type(hook).__module__.endswith(_HOOKS):
                return Other(f"diffusers' hook {name}", "remove the hook, or load it anew")
    return None
