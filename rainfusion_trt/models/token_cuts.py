"""Where a transformer's video tokens are cut for several GPUs, and put together again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class TokenCuts:
    """Places in a transformer's forward where tensors over the video's tokens become parts.

    Everything between them works token by token, or is self-attention, which exchanges tokens. The
    text is on every GPU.

    Attributes
    ----------
    arguments : mapping
        (module, argument) -> axis of the tokens in that argument, a tensor or several, of the
        module's call. The module "" is the transformer.
    outputs : mapping
        Module -> axis of the tokens in what it gives.
    gathered : str
        Module whose output, [B, tokens, C], is put together.
    """

    arguments: Mapping[tuple[str, str], int]
    outputs: Mapping[str, int]
    gathered: str = "proj_out"
