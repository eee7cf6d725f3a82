"""Where a transformer's video tokens are cut for several GPUs, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class TokenCuts:
    """Places in a transformer's forward where tensors over the video's tokens become parts.

    Everything between them works token by token, or is self-attention, which exchanges tokens. The
    text is on every GPU.

    Attributes
    ----------
    arguments : mapping
        (module, argument) -> axis of the tokens in that argument, a tensor or several, of the
        module's call. The module "" is the transformer; "NAME.*" is every module of a list.
    outputs : mapping
        Module -> axis of the tokens in what it gives.
    gathered : str
        Module whose output, [B, tokens, C], is put together.
    """

    arguments: Mapping[tuple[str, str], int]
    outputs: Mapping[str, int]
    gathered: str = "proj_out"


def modules_of(transformer: nn.Module, name: str) -> list[nn.Module]:
    """The modules that a name of `TokenCuts` stands for."""
    if name.endswith(".*"):
        return list(transformer.get_submodule(name.removesuffix(".*")).children())
    return [transformer.get_submodule(name)]
