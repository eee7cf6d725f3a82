"""Token grid and text place of a module outside the registry, given by hand.

`enable` and the exporter take the same arguments for it; what they may be is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.layout import AttentionLayout, token_grid
from rainfusion_trt.operator.settings import TextPlace, check_text

Call = Mapping[str, Any]  # keyword arguments of the module's forward
Grid = Sequence[int] | str | Callable[[Call], Tensor | Sequence[int]]
TextTokens = int | Callable[[Call], int]
KvLen = str | Callable[[Call], Tensor] | None


@dataclass(frozen=True)
class GivenPlace:
    """Place of the video in the sequence that self-attention is over.

    Parameters
    ----------
    grid
        Token grid (T, H, W) after patching; or the name of an argument that has its shape or is
        the three numbers; or a function of the keyword arguments that returns either.
    text, text_tokens
        Place of the L text tokens, "none", "first" or "last", and L, as a number or a function of
        the keyword arguments.
    kv_len
        Valid tokens per batch element, [B]: the name of an argument or a function of them.

    Raises
    ------
    InvalidInputError
        What is no name or function is none of these; the message names it.
    """

    grid: Grid
    text: TextPlace = "none"
    text_tokens: TextTokens = 0
    kv_len: KvLen = None

    def __post_init__(self) -> None:
        check_text(self.text)
        if not callable(self.grid) and not isinstance(self.grid, str):
            _check_sizes(tuple(self.grid))
        if not callable(self.text_tokens):
            self._text_tokens({})

    def layout(self, call: Call, like: Tensor) -> AttentionLayout:
        """Grid, text place and valid length of one forward call.

        Parameters
        ----------
        call
            Its keyword arguments.
        like
            Gives dtype and device to a grid of numbers.

        Raises
        ------
        InvalidInputError
            An argument is missing, or a function returns something else.
        """
        return AttentionLayout(
            grid=self._grid(call, like),
            text=self.text,
            kv_len=self._kv_len(call),
            text_tokens=self._text_tokens(call),
        )

    def _grid(self, call: Call, like: Tensor) -> Tensor:
        grid: Any = self.grid(call) if callable(self.grid) else self.grid
        if isinstance(grid, str):
            if call.get(grid) is None:
                raise InvalidInputError(
                    f"grid={grid!r} is none of the call's arguments {', '.join(call)}"
                )
            grid = call[grid]
        _check_sizes(tuple(grid.shape) if isinstance(grid, Tensor) else grid)
        return grid if isinstance(grid, Tensor) else token_grid(grid, like)

    def _text_tokens(self, call: Call) -> int:
        count = self.text_tokens(call) if callable(self.text_tokens) else self.text_tokens
        if not _is_count(count) or (count < 1) != (self.text == "none") or count < 0:
            wanted = "0" if self.text == "none" else "the number of text tokens in the sequence"
            raise InvalidInputError(
                f"text_tokens={count!r} must be {wanted} where text={self.text!r}"
            )
        return count

    def _kv_len(self, call: Call) -> Tensor | None:
        if self.kv_len is None:
            return None
        if isinstance(self.kv_len, str):
            if not isinstance(call.get(self.kv_len), Tensor):
                raise InvalidInputError(f"kv_len={self.kv_len!r} is none of the call's tensors")
            lengths = call[self.kv_len]
        else:
            lengths = self.kv_len(call)
        if lengths.dim() != 1 or lengths.is_floating_point():
            raise InvalidInputError(
                f"kv_len is {lengths.dtype} of shape {tuple(lengths.shape)}; expected whole "
                "numbers [B], valid tokens per batch element"
            )
        return lengths.to(torch.int32)


def _check_sizes(sizes: Any) -> None:
    is_three = isinstance(sizes, Sequence) and len(sizes) == 3 and not isinstance(sizes, str)
    if not is_three or not all(_is_count(size) and size >= 1 for size in sizes):
        raise InvalidInputError(f"grid={sizes} must be three positive sizes (T, H, W)")


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
