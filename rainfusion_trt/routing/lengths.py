"""What a forward attends over, for those who have to say the token grid of a model by hand."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rainfusion_trt.argument_types import typed
from rainfusion_trt.models.transformer import uncompiled

Pair = tuple[Any, Any]  # query and key length; torch.SymInt where a traced extent varies

# Latent frames, rows and columns a token, where a configuration does not say.
_PATCHES = ((1, 2, 2), (1, 1, 1), (2, 2, 2), (1, 4, 4))
_MOST = 3


@typed
def survey(module: nn.Module, *args: Any, **kwargs: Any) -> str:
    """Run a forward and say how long its attentions are and which token grids fit that.

    Parameters
    ----------
    module
        A transformer that is in no registry, without RainFusion.
    args, kwargs
        Of its forward, as a pipeline passes them.

    Returns
    -------
    str
        One line, for `grid`, `text` and `text_tokens` of :func:`enable` and of the exporter.

    Examples
    --------
    >>> print(survey(transformer, hidden_states=latents, encoder_hidden_states=text, timestep=t))
    """
    bound = inspect.signature(uncompiled(module).forward).bind(*args, **kwargs)
    call = {**bound.arguments, **bound.kwargs}
    with torch.no_grad(), _watched() as pairs:
        module(*args, **kwargs)
    return advice(module, pairs, shapes_of(call))


def shapes_of(call: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Of the tensors of a call."""
    return {name: tuple(x.shape) for name, x in call.items() if isinstance(x, Tensor)}


def advice(module: nn.Module, pairs: Iterable[Pair], shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The lengths that attention had in a call, and the grids that would explain them.

    Parameters
    ----------
    module
        Its configuration gives the patch, where it has one.
    pairs
        Query and key lengths.
    shapes
        Of the call's tensors.
    """
    pairs = list(pairs)
    found = list(dict.fromkeys(_candidates(module, pairs, shapes)))
    fits = " or ".join(map(str, found[:_MOST]))
    return f"{seen(pairs)}; {f'what fits them: {fits}' if fits else 'no grid of its inputs fits'}"


def seen(pairs: Iterable[Pair]) -> str:
    """The lengths of attentions in words."""
    counts = Counter((str(query), str(key)) for query, key in pairs)
    if not counts:
        return "no other call reached F.scaled_dot_product_attention"
    calls = (f"{query} x {key} ({count} times)" for (query, key), count in counts.items())
    return f"other calls had these query x key lengths: {', '.join(calls)}"


@dataclass(frozen=True)
class Candidate:
    """A grid that would explain the length of an attention."""

    grid: tuple[int, ...]
    text_tokens: int
    origin: str

    def __str__(self) -> str:
        text = f", text='first' or 'last', text_tokens={self.text_tokens}"
        return f"grid={self.grid}{text if self.text_tokens else ''} ({self.origin})"


def _candidates(
    module: nn.Module, pairs: list[Pair], shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[Candidate]:
    """Those of the most frequent length first."""
    known = [(_number(query), _number(key)) for query, key in pairs]
    own = Counter(query for query, key in known if query == key and query is not None)
    texts = {key for query, key in known if query != key}
    texts |= {shape[-2] for shape in shapes.values() if len(shape) == 3}
    for length, _ in own.most_common():
        for name, shape in shapes.items():
            for axes in _axes(shape):
                for patch in _patches(module):
                    sizes = tuple(shape[a] // p for a, p in zip(axes, patch, strict=True))
                    rest = length - sizes[0] * sizes[1] * sizes[2]
                    whole = all(shape[a] % p == 0 for a, p in zip(axes, patch, strict=True))
                    if whole and all(sizes) and (rest == 0 or rest in texts):
                        origin = f"{name} {list(shape)} in patches of {patch}"
                        yield Candidate(sizes, rest, origin)


def _axes(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """Frames, rows and columns: of [B, C, T, H, W] or [B, T, C, H, W], and of one clip."""
    return {5: ((2, 3, 4), (1, 3, 4)), 4: ((1, 2, 3), (0, 2, 3))}.get(len(shape), ())


def _patches(module: nn.Module) -> tuple[tuple[int, int, int], ...]:
    config = getattr(uncompiled(module), "config", None)
    if not isinstance(config, Mapping):
        return _PATCHES
    size = config.get("patch_size")
    if isinstance(size, int):
        return ((config.get("patch_size_t") or 1, size, size),)
    if isinstance(size, (tuple, list)) and len(size) == 3:
        frames, rows, columns = size
        return ((frames, rows, columns),)
    return _PATCHES


def _number(length: Any) -> int | None:
    """As a number, without binding a traced extent to it."""
    return length if isinstance(length, int) else getattr(length.node, "hint", None)


class _Watch(TorchFunctionMode):
    def __init__(self, pairs: list[Pair]) -> None:
        super().__init__()
        self.pairs = pairs

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(*args, **kwargs)
        return func(*args, **kwargs)

    def _note(self, query: Tensor, key: Tensor, *_: Any, **__: Any) -> None:
        self.pairs.append((query.shape[-2], key.shape[-2]))


@contextmanager
def _watched() -> Iterator[list[Pair]]:
    pairs: list[Pair] = []
    with _Watch(pairs):
        yield pairs
