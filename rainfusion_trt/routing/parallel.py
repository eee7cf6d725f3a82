"""RainFusion attention under diffusers' context parallelism (``enable_parallelism``).

Every device has a part of the video's tokens and a part of the text's. Before attention they are
exchanged for a part of the heads (Ulysses) and after it back, so that the operator sees the whole
sequence of some heads; heads are chosen one by one anyway. Ring attention would give each device a
part of the keys, among which no head can choose.

Tokens are sent with their number as the first dimension, so that the parts of the devices, one
behind the other, are the whole sequence as they arrive. With text they are [v0 t0 v1 t1 ...], and
one copy puts them in order: v0 v1 ... t0 t1 ..., or the text first. So the text is neither kept nor
computed on more than one device. How many tokens each device has follows from the clip, by the
rule of `torch.tensor_split`; nobody has to ask.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    from rainfusion_trt.operator.settings import TextPlace
    from rainfusion_trt.routing.site import Tokens
    from rainfusion_trt.routing.state import Routing

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
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
    """

    group: Any
    degree: int
    rank: int

    @classmethod
    def of(cls, parallel: Any) -> Ulysses | None:
        """What a ``_parallel_config`` of diffusers says; None where the sequence stays whole."""
        context = None if parallel is None else parallel.context_parallel_config
        if context is None:
            return None
        group = context._ulysses_mesh.get_group()
        return cls(group, context.ulysses_degree, context._ulysses_local_rank)

    def sizes(self, total: int) -> list[int]:
        """How many of `total` things in a row each device has; as `torch.tensor_split`.

        Without a branch, so that torch.compile makes one graph for all sizes.
        """
        return [(total + self.degree - 1 - rank) // self.degree for rank in range(self.degree)]

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
            Gets q, k and v [B, S, n, D] of the n heads of this device over the whole sequence, and
            returns [B, S, n, D].

        Returns
        -------
        Tensor
            [B, S of this device, N, D].
        """
        video, text = self.sizes(tokens.grid.numel()), self.sizes(tokens.text_tokens)
        order = _Order(tokens.text, video, text)
        local = [v + t for v, t in zip(video, text, strict=True)]
        heads = self.sizes(query.shape[2])
        mine, batch, size = heads[self.rank], query.shape[0], query.shape[3]

        # One after the other, so that no more than one of them is in two buffers at a time.
        whole = []
        for x in (query, key, value):
            parts = self._exchange(
                self._by_heads(x),
                [local[self.rank] * batch * n * size for n in heads],
                [s * batch * mine * size for s in local],
            )
            whole.append(order.whole(parts.view(-1, batch, mine, size)).transpose(0, 1))
        output = attend(*whole)
        del whole, parts  # before there are two buffers of the output

        received = self._exchange(
            order.parts(output.transpose(0, 1)).reshape(-1),
            [s * batch * mine * size for s in local],
            [local[self.rank] * batch * n * size for n in heads],
        )
        if len(set(heads)) == 1:
            parts = received.view(self.degree, local[self.rank], batch, mine, size)
            return parts.permute(2, 1, 0, 3, 4).reshape(batch, local[self.rank], -1, size)
        split = received.split([local[self.rank] * batch * n * size for n in heads])
        by_head = [
            part.view(local[self.rank], batch, n, size)
            for part, n in zip(split, heads, strict=True)
        ]
        return torch.cat(by_head, dim=2).transpose(0, 1)

    def _by_heads(self, x: Tensor) -> Tensor:
        """[B, S, N, D] as what each device gets, in a row: [S, B, n, D] of its n heads.

        With the tokens first, what arrives from all devices is [S of all, B, n, D] as it lies.
        """
        by_token = x.transpose(0, 1)
        heads = self.sizes(x.shape[2])
        if len(set(heads)) == 1:  # one copy
            return by_token.unflatten(2, (self.degree, heads[0])).movedim(2, 0).reshape(-1)
        return torch.cat([part.reshape(-1) for part in by_token.split(heads, dim=2)])

    def _exchange(self, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Send each device its elements of `x`; those of all devices in a row."""
        arrived = collectives.all_to_all_single(x.contiguous(), received, sent, self.group)
        return collectives.wait_tensor(arrived)


class _Order(NamedTuple):
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

    def _firsts_and_lasts(self) -> tuple[list[int], list[int]]:
        return (self.text, self.video) if self.place == "first" else (self.video, self.text)


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
