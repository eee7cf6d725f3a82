"""``HeadExchange``: some heads of every device, exchanged for tokens before attention and back.

Tokens are sent with their number as the first dimension, so that the parts of the devices, one
behind the other, are the whole sequence as they arrive. Tensors that are sent together lie side by
side, token by token: each of them is a view of what arrives. With text they are [v0 t0 v1 t1 ...],
and one copy puts them in order: v0 v1 ... t0 t1 ..., or the text first. So the text is neither kept
nor computed on more than one device.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rainfusion_trt.operator.settings import TextPlace


class Order(NamedTuple):
    """Where video and text of each device stand in the whole sequence, dimension 0."""

    place: TextPlace
    video: list[int]
    text: list[int]

    def whole(self, parts: Tensor) -> Tensor:
        """The sequence of which these are the devices' parts, one behind the other."""
        if self.place == "none":
            return parts
        firsts, lasts = self._firsts_and_lasts()
        pieces = parts.split(list(itertools.chain.from_iterable(zip(firsts, lasts, strict=True))))
        return torch.cat([*pieces[::2], *pieces[1::2]])

    def parts(self, whole: Tensor) -> Tensor:
        """The inverse."""
        if self.place == "none":
            return whole
        firsts, lasts = self._firsts_and_lasts()
        pieces = whole.split([*firsts, *lasts])
        pairs = zip(pieces[: len(firsts)], pieces[len(firsts) :], strict=True)
        return torch.cat(list(itertools.chain.from_iterable(pairs)))

    def tokens(self) -> list[int]:
        """How many each device has."""
        return [v + t for v, t in zip(self.video, self.text, strict=True)]

    def _firsts_and_lasts(self) -> tuple[list[int], list[int]]:
        return (self.text, self.video) if self.place == "first" else (self.video, self.text)


class HeadExchange(NamedTuple):
    """One row of heads, as this device sends and gets them.

    What is sent is there once `wait` was called; all devices send in the same order.

    Attributes
    ----------
    group : ProcessGroup
        The devices.
    rank : int
        Which of them this one is.
    order : Order
        Of their tokens.
    firsts, counts : list of int
        The heads of each device: the first one and how many.
    """

    group: Any
    rank: int
    order: Order
    firsts: list[int]
    counts: list[int]

    def send(self, *tensors: Tensor) -> Tensor:
        """Send [B, S of this device, N, D], one or several: to each device its heads."""
        like, count = tensors[0], len(tensors)
        by_token = [x.transpose(0, 1) for x in tensors]
        devices = len(self.counts)
        if like.shape[2] % devices == 0:  # one copy
            size = like.shape[2] // devices
            own = [
                x.unflatten(2, (devices, size)).narrow(3, self.firsts[0], self.counts[0])
                for x in by_token
            ]
            packed = _side_by_side([x.movedim(2, 0) for x in own], dim=3)
        else:
            spans = zip(self.firsts, self.counts, strict=True)
            parts = [_side_by_side([x.narrow(2, *span) for x in by_token], dim=2) for span in spans]
            packed = torch.cat(parts)
        sent, received = self._elements_of_heads(like), self._elements_of_tokens(like)
        return self._start(packed, [count * n for n in sent], [count * n for n in received])

    def arrived(self, sent: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[B, S, n, D] of the n heads of this device, of each tensor that was sent with these."""
        like = tensors[0]
        shape = (-1, like.shape[0], len(tensors), self.counts[self.rank], like.shape[3])
        whole = self.order.whole(wait(sent).view(shape))
        return [by_token.transpose(0, 1) for by_token in whole.unbind(2)]

    def send_back(self, output: Tensor) -> Tensor:
        """Send [B, S, n, D]: to each device its tokens."""
        packed = self.order.parts(output.transpose(0, 1)).reshape(-1)
        return self._start(
            packed, self._elements_of_tokens(output), self._elements_of_heads(output)
        )

    def by_device(self, returned: Tensor, like: Tensor) -> list[Tensor]:
        """[S of this device, B, n, D] of the n heads of each device, of what was sent back."""
        shape = (like.shape[1], like.shape[0], -1, like.shape[3])
        return [part.view(shape) for part in returned.split(self._elements_of_heads(like))]

    def _elements_of_heads(self, x: Tensor) -> list[int]:
        """Of the heads of each device, of this device's tokens."""
        tokens = self.order.tokens()[self.rank]
        return [tokens * x.shape[0] * count * x.shape[3] for count in self.counts]

    def _elements_of_tokens(self, x: Tensor) -> list[int]:
        """Of this device's heads, of the tokens of each device."""
        count = self.counts[self.rank]
        return [tokens * x.shape[0] * count * x.shape[3] for tokens in self.order.tokens()]

    def _start(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send each device its elements of `x`; those of all devices in a row, once waited for.

        Not by `_functional_collectives`, which waits at once where torch.compile traces it.
        """
        start = torch.ops._c10d_functional.all_to_all_single
        return start(x.contiguous(), received, sent, self.group.group_name)


def _side_by_side(tensors: list[Tensor], dim: int) -> Tensor:
    """All of them stacked, flat."""
    return tensors[0].reshape(-1) if len(tensors) == 1 else torch.stack(tensors, dim).reshape(-1)


def wait(sent: Tensor) -> Tensor:
    """What arrives, for operations that come after this one."""
    return torch.ops._c10d_functional.wait_tensor(sent)
