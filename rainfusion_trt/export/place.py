"""Token grid and text place of a module outside the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import AttentionLayout
from rainfusion_trt.models.layout import token_grid
from rainfusion_trt.operator.settings import TextPlace, check_text

Call = Mapping[str, Any]  # keyword arguments of the module's forward
Grid = tuple[int, int, int] | Callable[[Call], Tensor | Sequence[int]]


@dataclass(frozen=True)
class GivenPlace:
    """Place of the video in the sequence, from the arguments of :func:`export_module`."""

    grid: Grid
    text: TextPlace
    text_tokens: int | Callable[[Call], int]
    kv_len: str | Callable[[Call], Tensor] | None
    like: Tensor  # has the module's dtype and device

    def layout(self, call: Call) -> AttentionLayout:
        """Grid, text place and valid length of one forward call; raises InvalidInputError."""
        return AttentionLayout(
            grid=self._grid(call),
            text=self.text,
            kv_len=self._kv_len(call),
            text_tokens=self._text_tokens(call),
        )

    def _grid(self, call: Call) -> Tensor:
        grid = self.grid(call) if callable(self.grid) else self.grid
        sizes = tuple(grid.shape if isinstance(grid, Tensor) else grid)
        if len(sizes) != 3 or not all(_is_count(size) and size >= 1 for size in sizes):
            raise InvalidInputError(f"grid={sizes} must be three positive sizes (T, H, W)")
        if isinstance(grid, Tensor):
            return grid
        return token_grid(sizes, self.like)

    def _text_tokens(self, call: Call) -> int:
        check_text(self.text)
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
                raise InvalidInputError(f"kv_len={self.kv_len!r} is none of the module's tensors")
            lengths = call[self.kv_len]
        else:
            lengths = self.kv_len(call)
        if lengths.dim() != 1 or lengths.is_floating_point():
            raise InvalidInputError(
                f"kv_len is {lengths.dtype} of shape {tuple(lengths.shape)}; expected whole "
                "numbers [B], valid tokens per batch element"
            )
        return lengths.to(torch.int32)


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
