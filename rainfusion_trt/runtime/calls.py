"""Puts a function around the calls of a module, and into no graph that it may be compiled to.

And hears what pipelines say that a call is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_NAME = "_compiled_call_impl"  # what a module's call goes to, hooks and all, where there is one


@contextmanager
def calls_through(
    module: nn.Module, around: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> Iterator[None]:
    """A context in which the calls of a module go through a function around them.

    It is outside of the module's hooks, and of what ``module.compile()`` and ``torch.compile`` have
    made of it, which would trace a hook with the module.

    Parameters
    ----------
    module
        Called as ``module(...)``.
    around
        What the call was -> what it is to be.
    """
    # The dictionary itself, since the module that torch.compile makes sets and reads attributes of
    # the one inside of it.
    own = module.__dict__
    compiled = own.get(_NAME)
    own[_NAME] = around(module._call_impl if compiled is None else compiled)
    try:
        yield
    finally:
        if compiled is None:
            del own[_NAME]
        else:
            own[_NAME] = compiled


@contextmanager
def contexts_told(module: nn.Module, told: Callable[[str | None], None]) -> Iterator[None]:
    """A context in which a function hears of a module's cache contexts, where it has any.

    diffusers' pipelines call within ``cache_context("cond")`` and the like. The number of a call in
    its step does not tell what it is for: guidance that is off in some steps leaves calls out.

    Parameters
    ----------
    module
        A transformer.
    told
        Gets the name as a context begins, and None as it ends.
    """
    inner = getattr(module, "cache_context", None)
    if inner is None:
        yield
        return

    @contextmanager
    def cache_context(name: str, *args: Any, **kwargs: Any) -> Iterator[None]:
        told(name)
        try:
            with inner(name, *args, **kwargs):
                yield
        finally:
            told(None)

    own = module.__dict__
    before = own.get("cache_context")
    own["cache_context"] = cache_context
    try:
        yield
    finally:
        if before is None:
            del own["cache_context"]
        else:
            own["cache_context"] = before
