"""Puts a function around the calls of a module, and into no graph that it may be compiled to."""

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
