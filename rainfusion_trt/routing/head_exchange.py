"""``HeadExchange``: some heads of every device, exchanged for tokens before attention and back.

Tokens are sent with their number as the first dimension, so that the parts of the devices, one
behind the other, are the whole sequence as they arrive. Text is cut as the video is, and neither
kept nor computed on more than one device. It travels by itself, to its place behind the video or
before it. While attention runs a single tensor travels: [v0 t0 v1 t1 ...], and one copy puts what
has arrived in order. Tensors that are sent together lie side by side, token by token: each of them
is a view of what arrives.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.routing import exchange_op  # noqa: F401  # its operator

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
        firsts, lasts = self.runs()
        pieces = parts.split(list(itertools.chain.from_iterable(zip(firsts, lasts, strict=True))))
        return torch.cat([*pieces[::2], *pieces[1::2]])

    def parts(self, whole: Tensor) -> Tensor:
        """The inverse."""
        if self.place == "none":
            return whole
        firsts, lasts = self.runs()
        pieces = whole.split([*firsts, *lasts])
        pairs = zip(pieces[: len(firsts)], pieces[len(firsts) :], strict=True)
        return torch.cat(list(itertools.chain.from_iterable(pairs)))

    def tokens(self) -> list[int]:
        """How many each device has."""
        return [v + t for v, t in zip(self.video, self.text, strict=True)]

    def runs(self) -> list[list[int]]:
        """The tokens of each device that come first in the sequence, and those that come last."""
        if self.place == "none":
            return [self.video]
        return [self.text, self.video] if self.place == "first" else [self.video, self.text]


class HeadExchange(NamedTuple):
    """One row of heads, as this device sends and gets them.

    `exchange` and `exchange_back` wait; what `send` and `send_back` send is there once `wait` was
    called. All devices send in the same order.

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

    def exchange(self, x: Tensor, after: Tensor | None = None) -> Tensor:
        """[B, S, n, D] of the n heads of this device, of [B, S of this device, N, D].

        `after` is what the exchange before this one gave, behind which this one has to come; only
        with text, as torch.compile keeps the order of torch.distributed's own operators.
        """
        runs = self.order.runs()
        if len(runs) == 1:
            (whole,) = self.arrived(self.send(x), [x])
            return whole
        parts = x.split([run[self.rank] for run in runs], dim=1)
        sent = [self._elements_of_heads(x, run[self.rank]) for run in runs]
        received = [self._elements_of_tokens(x, run) for run in runs]
        arrived = self._exchange_runs([self._pack(part) for part in parts], after, sent, received)
        shape = (-1, x.shape[0], self.counts[self.rank], x.shape[3])
        return arrived.view(shape).transpose(0, 1)

    def exchange_back(self, output: Tensor) -> Tensor:
        """[B, S of this device, N, D], of [B, S, n, D] of the n heads of this device."""
        runs = self.order.runs()
        if len(runs) == 1:
            returned = [wait(self.send_back(output))]
        else:
            by_token = output.transpose(0, 1).contiguous()
            parts = [part.reshape(-1) for part in by_token.split([sum(run) for run in runs])]
            sent = [self._elements_of_tokens(output, run) for run in runs]
            received = [self._elements_of_heads(output, run[self.rank]) for run in runs]
            arrived = self._exchange_runs(parts, None, sent, received)
            returned = list(arrived.split([sum(elements) for elements in received]))
        devices, count = len(self.counts), self.counts[self.rank]
        if sum(self.counts) == devices * count:  # one copy
            shape = (devices, -1, output.shape[0], count, output.shape[3])
            parts = [x.view(shape).permute(2, 1, 0, 3, 4) for x in returned]
            return torch.cat(parts, dim=1).flatten(2, 3)
        merged = [torch.cat(self.by_device(x, output), dim=2) for x in returned]
        return torch.cat(merged).transpose(0, 1)

    def send(self, *tensors: Tensor) -> Tensor:
        """Send [B, S of this device, N, D], one or several: to each device its heads."""
        like, count = tensors[0], len(tensors)
        sent = self._elements_of_heads(like, like.shape[1])
        received = self._elements_of_tokens(like, self.order.tokens())
        return self._start(
            self._pack(*tensors), [count * n for n in sent], [count * n for n in received]
        )

    def arrived(self, sent: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """[B, S, n, D] of the n heads of this device, of each tensor that was sent with these."""
        like = tensors[0]
        shape = (-1, like.shape[0], len(tensors), self.counts[self.rank], like.shape[3])
        whole = self.order.whole(wait(sent).view(shape))
        return [by_token.transpose(0, 1) for by_token in whole.unbind(2)]

    def send_back(self, output: Tensor) -> Tensor:
        """Send [B, S, n, D]: to each device its tokens."""
        packed = self.order.parts(output.transpose(0, 1)).reshape(-1)
        tokens = self.order.tokens()
        return self._start(
            packed,
            self._elements_of_tokens(output, tokens),
            self._elements_of_heads(output, tokens[self.rank]),
        )

    def by_device(self, returned: Tensor, like: Tensor) -> list[Tensor]:
        """[tokens, B, n, D] of the n heads of each device, of what was sent back to this one."""
        tokens = returned.numel() // (like.shape[0] * sum(self.counts) * like.shape[3])
        parts = returned.split(self._elements_of_heads(like, tokens))
        return [
            part.view(tokens, like.shape[0], count, like.shape[3])
            for part, count in zip(parts, self.counts, strict=True)
        ]

    def _pack(self, *tensors: Tensor) -> Tensor:
        """Flat, device by device: its heads of [B, S of this device, N, D], one or several."""
        by_token = [x.transpose(0, 1) for x in tensors]
        devices, heads = len(self.counts), tensors[0].shape[2]
        if heads % devices == 0:  # one copy
            own = [
                x.unflatten(2, (devices, heads // devices)).narrow(
                    3, self.firsts[0], self.counts[0]
                )
                for x in by_token
            ]
            return _side_by_side([x.movedim(2, 0) for x in own], dim=3)
        spans = zip(self.firsts, self.counts, strict=True)
        return torch.cat(
            [_side_by_side([x.narrow(2, *span) for x in by_token], dim=2) for span in spans]
        )

    def _elements_of_heads(self, x: Tensor, tokens: int) -> list[int]:
        """Of the heads of each device, of so many tokens."""
        return [tokens * x.shape[0] * count * x.shape[3] for count in self.counts]

    def _elements_of_tokens(self, x: Tensor, tokens: Sequence[int]) -> list[int]:
        """Of this device's heads, of the tokens of each device."""
        count = self.counts[self.rank]
        return [number * x.shape[0] * count * x.shape[3] for number in tokens]

    def _exchange_runs(
        self,
        parts: Sequence[Tensor],
        after: Tensor | None,
        sent: Sequence[list[int]],
        received: Sequence[list[int]],
    ) -> Tensor:
        """Send each device its elements of both, and wait: what arrives, one behind the other."""
        first, last = (x.contiguous() for x in parts)
        counts = (sent[0], received[0], sent[1], received[1])
        return torch.ops.rainfusion.exchange_runs(
            first, last, after, *counts, self.group.group_name
        )

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
