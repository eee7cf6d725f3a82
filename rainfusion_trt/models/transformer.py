"""The type of a diffusers transformer, for type checkers; diffusers itself is imported on use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

if TYPE_CHECKING:
    from typing_extensions import Self

    class Transformer(nn.Module):
        """A module with what `diffusers.ModelMixin` and `ConfigMixin` give every transformer.

        Attributes
        ----------
        config
            Constructor arguments, a mapping.
        dtype, device
            Those of the parameters.
        """

        config: Any
        dtype: torch.dtype
        device: torch.device

        def __getattr__(self, name: str) -> Any: ...

        @classmethod
        def load_config(cls, checkpoint: str, **options: Any) -> Any: ...

        @classmethod
        def from_config(cls, config: Any, **options: Any) -> Self: ...

        @classmethod
        def from_pretrained(cls, checkpoint: str, **options: Any) -> Any: ...

else:
    Transformer = nn.Module


def as_transformer(module: nn.Module) -> Transformer:
    """The same object; type checkers then know its configuration and its parts."""
    return cast(Transformer, module)


def uncompiled(module: nn.Module) -> nn.Module:
    """The module itself, where `module` is what torch.compile made of it."""
    return getattr(module, "_orig_mod", module)


def config_of(module: nn.Module) -> Mapping[str, Any]:
    """The configuration of a diffusers transformer; empty where a module has none."""
    return getattr(module, "config", None) or {}
