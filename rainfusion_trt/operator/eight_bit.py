"""Attention of 8-bit operands in plain PyTorch: what the kernels round, rounded here too.

``docs/rainfusion.md`` gives the rules, ``plugins/kernels/common/eight_bit.h`` their numbers. The
operands are those of the kernels, and so is the order of the keys, on which the rounding of
probabilities depends; products and sums are float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from rainfusion_trt.operator.geometry import Kind, block_shape

if TYPE_CHECKING:
    from rainfusion_trt.operator.choice import Call, Head

HEAD_SIZES = (64, 128)
_CENTRE_STRIDE = 8  # every eighth key counts for the centre of keys
_LARGEST_INTEGER = 127.0
_LARGEST_E4M3 = 448.0
_SMALLEST_AMPLITUDE = 1e-12
_ERROR_ROWS = 4  # values that pass what rounding takes from them on to the next
_ERROR_SHARE = 0.25
_PEAK = 8.0  # the largest probability of a row's first tile is 2^8
_USUAL_SUM = 64.0  # at most, of the probabilities of a thread's keys, once they were too large
_LARGEST_FLOAT_SUM = 1e30
_THREADS = 4  # that share a row: of every 8 keys of a tile each has two
_LOG2_E = math.log2(math.e)


class RowTokens(NamedTuple):
    """Query tokens that attend to the same keys, as the reference has them."""

    tokens: Tensor | slice
    keys: Tensor  # bool [S]
    means: Tensor | None  # bool [key windows]
    middle: int  # a token in the middle of them


@functools.cache
def _hadamard(size: int, device: torch.device) -> Tensor:
    matrix = torch.ones(1, 1, dtype=torch.float32, device=device)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix


def rotated(x: Tensor) -> Tensor:
    """Rows times the Hadamard matrix of ones, in Sylvester's order, in float32: x [S, D]."""
    return x.float() @ _hadamard(x.shape[-1], x.device)


def integers(x: Tensor, amplitude: Tensor) -> Tensor:
    """x in units of a 127th of the amplitude, to the nearest: float32 whole numbers."""
    return (x * (_LARGEST_INTEGER / amplitude)).round()


def e4m3(x: Tensor) -> Tensor:
    """x to the nearest number of e4m3, in float32. Numbers above 448 become 448."""
    return x.clamp(-_LARGEST_E4M3, _LARGEST_E4M3).to(torch.float8_e4m3fn).float()


def e4m3_of_neighbours(x: Tensor) -> Tensor:
    """x [n, D] to e4m3; of every four rows each gets a quarter of the error of the one before.

    So errors of neighbours, whose probabilities are much alike, add up to less.
    """
    padded = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % _ERROR_ROWS))
    rounded = []
    error = torch.zeros((), device=x.device)
    for rows in padded.view(-1, _ERROR_ROWS, x.shape[1]).unbind(1):
        wanted = rows + _ERROR_SHARE * error
        rounded.append(e4m3(wanted))
        error = wanted - rounded[-1]
    return torch.stack(rounded, 1).flatten(0, 1)[: len(x)]


@dataclass
class _Tile:
    """Keys of one scale: float32 integers [n, D], their factor, and values in e4m3."""

    first: int | None  # a token of it; None for pseudo-keys
    keys: Tensor
    factor: Tensor
    values: Tensor


class EightBitHead:
    """The operands of one head, rounded: q, k, v [S, D]."""

    def __init__(self, call: Call, head: Head, q: Tensor, k: Tensor, v: Tensor, kv_len: int):
        self._scale = call.scale
        head_size = q.shape[1]
        real = v[:kv_len].float()
        some = k[:kv_len:_CENTRE_STRIDE].float()
        self._centre = some.mean(0) if kv_len else some.new_zeros(head_size)
        self._value_centre = real.mean(0) if kv_len else v.new_zeros(1).float()
        amplitude = (real - self._value_centre).abs().amax(0) if kv_len else v.new_ones(1).float()
        self._value_scale = amplitude.clamp(min=_SMALLEST_AMPLITUDE) / _LARGEST_E4M3
        rows = rotated(q)
        amplitude = rows.abs().amax(1, keepdim=True).clamp(min=_SMALLEST_AMPLITUDE)
        self._queries = integers(rows, amplitude)
        to_base_2 = call.scale * _LOG2_E / head_size
        self._query_factor = amplitude / _LARGEST_INTEGER * to_base_2
        self._shift = q.float() @ self._centre.float() * call.scale

        self._tiles: list[_Tile] = []
        self._tile_of: dict[int, int] = {}  # of every token of theirs
        for tokens in _token_tiles(call, head):
            real = tokens[tokens < kv_len]
            if len(real):
                self._tile_of |= dict.fromkeys(tokens.tolist(), len(self._tiles))
                self._tiles.append(self._tile(int(real[0]), k[real], v[real]))
        # Rounding leaves values with a mean of their own, which the output loses.
        rounded = sum(tile.values.sum(0) for tile in self._tiles)
        self._output_centre = self._value_centre - self._value_scale * rounded / max(kv_len, 1)
        self._pseudo: list[_Tile] = []
        self._log_counts: tuple[Tensor, ...] = ()
        if head.kind is Kind.WINDOWS:
            assert call.windows is not None
            key, value, log_count = call.windows.pseudo(k, v, kv_len)
            size = block_shape(head_size, "8bit").k
            pairs = zip(key.split(size), value.split(size), strict=True)
            self._pseudo = [self._tile(None, *pair) for pair in pairs]
            self._log_counts = (log_count * _LOG2_E).split(size)

    def _tile(self, first: int | None, k: Tensor, v: Tensor) -> _Tile:
        keys = rotated(k.float() - self._centre)
        amplitude = keys.abs().amax().clamp(min=_SMALLEST_AMPLITUDE)
        # A pseudo-value loses what every output gets back, which is known by then.
        centre = self._value_centre if first is not None else self._output_centre
        values = e4m3_of_neighbours((v.float() - centre) / self._value_scale)
        return _Tile(first, integers(keys, amplitude), amplitude / _LARGEST_INTEGER, values)

    def attend(self, rows: RowTokens) -> tuple[Tensor, Tensor] | None:
        """Output [n, D] and log-sum-exp [n] of some rows, None if they have no keys."""
        softmax = _Softmax()
        for scores, values in self._scores(rows):
            softmax.add(scores, values)
        if softmax.output is None:
            return None
        output = softmax.output / softmax.sum * self._value_scale + self._output_centre
        lse = softmax.reference / _LOG2_E + softmax.sum.log()
        return output, lse[:, 0] + self._shift[rows.tokens]

    def _scores(self, rows: RowTokens) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores to base 2 [n, keys] of every tile that the rows attend to, and its values.

        The tile with the middle of the rows comes first.
        """
        query, factor = self._queries[rows.tokens], self._query_factor[rows.tokens]
        own = self._tile_of.get(rows.middle)
        for index in sorted(range(len(self._tiles)), key=lambda i: i != own):
            tile = self._tiles[index]
            if rows.keys[tile.first]:
                yield query @ tile.keys.T * (factor * tile.factor), tile.values
        if rows.means is None:
            return
        left_out = rows.means.split([len(tile.keys) for tile in self._pseudo])
        for tile, log_count, left in zip(self._pseudo, self._log_counts, left_out, strict=True):
            bias = torch.where(left, log_count, -math.inf)
            yield query @ tile.keys.T * (factor * tile.factor) + bias, tile.values


def _token_tiles(call: Call, head: Head) -> Iterable[Tensor]:
    """int64 [n]: the tokens of every tile, in memory order."""
    if head.kind is Kind.WINDOWS:
        assert call.windows is not None
        cut = call.windows.k_cut
        runs = [torch.arange(begin, end, device=call.device) for begin, end in cut.sink_runs()]
        windows = [tokens[tokens >= 0] for tokens in call.windows.k_tokens]
        lead = cut.leading_sinks
        return [*runs[:lead], *windows, *runs[lead:]]
    return [torch.arange(b.begin, b.end, device=call.device) for b in call.k_blocks]


class _Softmax:
    """The kernels' online softmax: references move by their rule, probabilities are e4m3."""

    def __init__(self) -> None:
        self.output: Tensor | None = None
        self.reference = self.sum = torch.empty(0)

    def add(self, scores: Tensor, values: Tensor) -> None:
        """A tile's scores to base 2 [n, keys] and values [keys, D]."""
        if self.output is None:
            self.reference = scores.amax(1, keepdim=True) - _PEAK
            p = torch.exp2(scores - self.reference)
            self.sum = p.sum(1, keepdim=True)
            self.output = e4m3(p) @ values
            return
        p = torch.exp2(scores - self.reference)
        largest = _thread_sums(p).amax(1, keepdim=True)
        moved = largest > _LARGEST_E4M3
        most = p.amax(1, keepdim=True)  # becomes a power of two, which e4m3 has
        usual = torch.frexp(most * (_USUAL_SUM / largest)).exponent - 1
        by = torch.where(moved, torch.log2(most) - usual, 0.0)
        from_maxima = (scores.amax(1, keepdim=True) - _PEAK - self.reference).clamp(min=0.0)
        by = torch.where(largest <= _LARGEST_FLOAT_SUM, by, from_maxima)
        factor = torch.exp2(-by)
        self.reference = self.reference + by
        p = torch.where(by > 0, torch.exp2(scores - self.reference), p)
        self.sum = self.sum * factor + p.sum(1, keepdim=True)
        self.output = self.output * factor + e4m3(p) @ values


def _thread_sums(p: Tensor) -> Tensor:
    """float32 [n, threads]: the sums of a row's probabilities in a tile that each thread has."""
    padded = torch.nn.functional.pad(p, (0, -p.shape[1] % (2 * _THREADS)))
    return padded.view(len(p), -1, _THREADS, 2).sum((1, 3))
