"""RainFusion attention under diffusers' context parallelism (``enable_parallelism``).

Every device has a part of the video's tokens and a part of the text's. Before attention they are
exchanged for a part of the heads (Ulysses) and after it back, so that the operator sees the whole
sequence of some heads; heads are chosen one by one anyway. Ring attention would give each device a
part of the keys, among which no head can choose.

How many tokens and heads each device has follows from the clip, by the rule of
`torch.tensor_split`; nobody has to ask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.routing.head_exchange import HeadExchange, Order, wait

if TYPE_CHECKING:
    from rainfusion_trt.routing.site import Tokens
    from rainfusion_trt.routing.state import Routing

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
HEAD_GROUPS = "_rainfusion_head_groups"  # what `spread` adds to a ``_parallel_config``
# Of which it is known how their parts lie together, and tested.
_CLASSES = (
    "AllegroTransformer3DModel",
    "CogVideoXTransformer3DModel",
    "HunyuanVideo15Transformer3DModel",
    "HunyuanVideoTransformer3DModel",
    "SkyReelsV2Transformer3DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
)
_DIVERGING_HOOKS = ("fbc_leader_block_hook",)  # a cache that measures the tokens that it sees


class Ulysses(NamedTuple):
    """A device among those that share a sequence.

    Attributes
    ----------
    group : ProcessGroup
        The devices, in the order of their parts.
    degree : int
        P, how many they are.
    rank : int
        Which of them this one is.
    groups : int
        Into how many its heads are cut, of which one attends while the next one's tokens travel; 1
        exchanges all of them at once.
    """

    group: Any
    degree: int
    rank: int
    groups: int = 1

    @classmethod
    def of(cls, parallel: Any) -> Ulysses | None:
        """What a ``_parallel_config`` of diffusers says; None where the sequence stays whole."""
        context = None if parallel is None else parallel.context_parallel_config
        if context is None:
            return None
        group = context._ulysses_mesh.get_group()
        groups = getattr(parallel, HEAD_GROUPS, 1)
        return cls(group, context.ulysses_degree, context._ulysses_local_rank, groups)

    def sizes(self, total: int) -> list[int]:
        """How many of `total` things in a row each device has; as `torch.tensor_split`.

        Without a branch, so that torch.compile makes one graph for all sizes.
        """
        return [(total + self.degree - 1 - rank) // self.degree for rank in range(self.degree)]

    def own(self, total: int) -> int:
        """How many of them this device has."""
        return self.sizes(total)[self.rank]

    def part(self, whole: Tensor, dim: int) -> Tensor:
        """This device's part of a tensor over all video tokens, such as a rotary table."""
        return whole.tensor_split(self.degree, dim=dim)[self.rank]

    def attention(
        self, tokens: Tokens, query: Tensor, key: Tensor, value: Tensor, attend: Attend
    ) -> Tensor:
        """Attention of this device's tokens.

        Parameters
        ----------
        tokens : Tokens
            Of the whole sequence.
        query, key, value
            [B, S of this device, N, D].
        attend
            Gets q, k and v [B, S, n, D] of n heads of this device over the whole sequence, and
            returns [B, S, n, D]; called for each group of them.

        Returns
        -------
        Tensor
            [B, S of this device, N, D].
        """
        video, text = self.sizes(tokens.grid.numel()), self.sizes(tokens.text_tokens)
        order = Order(tokens.text, video, text)
        qkv = (query, key, value)
        rows = [
            HeadExchange(self.group, self.rank, order, firsts, counts)
            for firsts, counts in self._rows(query.shape[2])
        ]
        if len(rows) == 1:
            return _in_turn(rows[0], qkv, attend)
        received = [wait(sent) for sent in _overlapping(rows, qkv, attend)]
        if query.shape[2] % self.degree == 0:  # one copy
            shape = (self.degree, query.shape[1], query.shape[0], -1, query.shape[3])
            parts = [x.view(shape).permute(2, 1, 0, 3, 4) for x in received]
            return torch.cat(parts, dim=3).flatten(2, 3)
        by_row = [row.by_device(x, query) for row, x in zip(rows, received, strict=True)]
        by_head = list(itertools.chain.from_iterable(zip(*by_row, strict=True)))
        return torch.cat(by_head, dim=2).transpose(0, 1)

    def _rows(self, heads: int) -> list[tuple[list[int], list[int]]]:
        """Heads that are exchanged together, of each device: the first one and how many.

        One row wherever a device has too few for `groups`, on all devices alike.
        """
        own = self.sizes(heads)
        groups = self.groups if min(own) >= self.groups else 1
        firsts, rows = [sum(own[:rank]) for rank in range(self.degree)], []
        for group in range(groups):
            counts = [(count + groups - 1 - group) // groups for count in own]
            rows.append((firsts, counts))
            firsts = [first + count for first, count in zip(firsts, counts, strict=True)]
        return rows


def _in_turn(row: HeadExchange, qkv: Sequence[Tensor], attend: Attend) -> Tensor:
    """One after the other, so that no more than one of them is in two buffers at a time."""
    query, key, value = qkv
    # Values first: they have neither norm nor rotary, whose operands would wait beside them.
    value = row.exchange(value)
    query = row.exchange(query, value)
    key = row.exchange(key, query)
    output = attend(query, key, value)
    del query, key, value  # before there are two buffers of the output
    return row.exchange_back(output)


def _overlapping(
    rows: Sequence[HeadExchange], qkv: Sequence[Tensor], attend: Attend
) -> list[Tensor]:
    """A row attends while the next one's q, k and v and the output of the one before travel.

    q, k and v travel together: an exchange that begins while attention runs finds no
    multiprocessor, as attention leaves none to others until it ends.
    """
    returning = []
    arriving = [rows[0].send(*qkv)]
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        whole = row.arrived(arriving.pop(), qkv)
        if following is not None:  # only now, as what was sent is free again
            arriving.append(following.send(*qkv))
        output = attend(*whole)
        del whole
        returning.append(row.send_back(output))
        del output
    return returning


def check_class(transformer: nn.Module) -> None:
    """Refuse a transformer of a class whose tokens cannot be shared.

    Raises
    ------
    UnsupportedError
        Another class than those that were tested.
    """
    kind = type(transformer).__name__
    if kind not in _CLASSES:
        raise UnsupportedError(
            f"{kind} cannot share its tokens among devices under RainFusion: run it on one device, "
            f"as only {', '.join(_CLASSES)} can"
        )


def context_of(routing: Routing, transformer: nn.Module) -> Any:
    """Diffusers' ``ContextParallelConfig``; None where the sequence stays whole."""
    configs = [getattr(transformer, "_parallel_config", None)]
    configs += [s.processor._parallel_config for s in routing.sites if s.processor is not None]
    parallel = next((config for config in configs if config is not None), None)
    return None if parallel is None else parallel.context_parallel_config


def check_forward(routing: Routing, transformer: nn.Module, call: Mapping[str, Any]) -> None:
    """Refuse, on all devices alike and before any of them waits, what cannot be cut into parts.

    Raises
    ------
    UnsupportedError
        A class that is not known to work, ring attention, blocks that count tokens from the first
        one or get a timestep for each frame, a cache that decides by the tokens that it sees, or a
        self-attention whose processor knows nothing of the other devices.
    InvalidInputError
        Fewer heads than devices, or tokens that their number does not divide.
    """
    context = context_of(routing, transformer)
    if not routing.sites or context is None:
        return
    check_class(transformer)
    if context.ring_degree > 1:
        raise UnsupportedError(
            f"{routing.kind}: ring attention gives each device a part of the keys, and RainFusion "
            "chooses among all of them; use ContextParallelConfig(ulysses_degree=...) alone"
        )
    config = getattr(transformer, "config", None) or {}
    if config.get("image_condition_type") == "token_replace":
        raise UnsupportedError(
            f"{routing.kind} with image_condition_type='token_replace' counts the tokens of the "
            "first frame in every block, which a part of the video does not start with: run it on "
            "one device"
        )
    if call.get("enable_diffusion_forcing"):
        raise UnsupportedError(
            f"{routing.kind} with enable_diffusion_forcing=True gives every block a timestep for "
            "each frame, which is not cut into parts: run it on one device"
        )
    for each in routing.sites:
        processor = each.attention.processor
        if getattr(processor, "_parallel_config", None) is None:
            raise UnsupportedError(
                f"{each.name} of {routing.kind} has {type(processor).__name__}, which does not "
                "know that devices share the tokens and would attend to those of one: put back "
                "what enable() set, or run it on one device"
            )
        registry = getattr(each.block, "_diffusers_hook", None)
        if registry is not None and any(name in registry.hooks for name in _DIVERGING_HOOKS):
            raise UnsupportedError(
                f"{each.name} of {routing.kind} has diffusers' first block cache, which decides by "
                "the tokens of one device, so that devices would wait for each other in vain: use "
                "PyramidAttentionBroadcastConfig, or MagCacheConfig before the clip is shared, or "
                "no cache"
            )
    _check_numbers(routing.running_tokens(), routing.sites[0].attention.heads, context)


def _check_numbers(tokens: Tokens, heads: int, context: Any) -> None:
    degree = context.ulysses_degree
    if heads < degree:
        raise InvalidInputError(
            f"ulysses_degree={degree}, and each device needs one of the {heads} heads or more: "
            f"use from 2 to {heads} devices"
        )
    parts = {"video": tokens.grid.numel(), "text": tokens.text_tokens}
    for name, count in parts.items():
        if name == "text" and tokens.text == "none":
            continue
        if count < degree:
            raise InvalidInputError(
                f"{count} {name} tokens cannot be cut into ulysses_degree={degree} parts: use from "
                f"2 to {count} devices"
            )
        if count % degree and not context.ulysses_anything:
            raise InvalidInputError(
                f"ulysses_degree={degree} does not divide the {count} {name} tokens of this call: "
                "use ContextParallelConfig(ulysses_degree=..., ulysses_anything=True)"
            )
