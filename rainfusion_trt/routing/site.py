"""Where a transformer attends, and over what: `Site` and `Tokens`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

from rainfusion_trt.operator.settings import TextPlace

if TYPE_CHECKING:
    from rainfusion_trt.routing.processors import RoutedProcessor


class Tokens(NamedTuple):
    """What the self-attentions of a forward attend over.

    Attributes
    ----------
    grid : Tensor
        Of the shape [T, H, W] of the token grid; only its shape is read. A tensor, since
        torch.compile makes one graph for many shapes, but one for each value of a number.
    text : {"none", "first", "last"}
        Where the text tokens stand.
    text_tokens : int
        How many they are.
    padded : bool
        Whether a mask hides padding at the end of the text.
    """

    grid: Tensor
    text: TextPlace
    text_tokens: int
    padded: bool

    def total(self) -> int:
        """S, the length of the sequence."""
        return self.grid.numel() + self.text_tokens


class Site:
    """One self-attention of a transformer.

    Attributes
    ----------
    name : str
        In the transformer, such as ``blocks.0.attn1``.
    attention, block : nn.Module
        The attention and what holds it.
    processor : RoutedProcessor, optional
        Ours; None where the attention stays dense, as ``allow_dense=True`` permits.
    entered : bool
        Whether the block ran in this forward.
    """

    def __init__(
        self,
        name: str,
        attention: Any,
        block: nn.Module,
        processor: RoutedProcessor | None,
    ) -> None:
        self.name = name
        self.attention = attention
        self.block = block
        self.processor = processor
        self.entered = False

    @property
    def is_ours(self) -> bool:
        """Whether the attention still has the processor that it was given."""
        return self.processor is not None and self.attention.processor is self.processor
