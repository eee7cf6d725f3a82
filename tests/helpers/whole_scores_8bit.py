"""Attention of 8-bit operands for all heads and rows of a clip at once, tile by tile of keys.

The rules are those of ``rainfusion_trt.operator.eight_bit``, which has a head and a block of rows
at a time; what rounds is its own. A tile that a row does not attend to has scores of -infinity
there and leaves the row as it was.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from rainfusion_trt.operator.choice import Call
from rainfusion_trt.operator.eight_bit import e4m3, integers, rotated
from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.operator.windows import WindowCut

_LOG2_E = math.log2(math.e)


class EightBitClip:
    """The operands of a clip, rounded, q, k, v [N, S, D], and what its heads attend to."""

    def __init__(self, call: Call, q: Tensor, k: Tensor, v: Tensor, kv_len: int) -> None:
        self._tensors = q, k, v, kv_len
        self._call = call
        self._keys: list[Tensor] = []
        self._means: list[Tensor | None] = []

    def add(self, keys: Tensor, means: Tensor | None) -> None:
        """The next head's pairs: bool [S, S], and bool [S, key windows] for heads of windows."""
        self._keys.append(keys)
        self._means.append(means)

    def attend(self) -> tuple[Tensor, Tensor]:
        """Output [N, S, D] and log-sum-exp [N, S], in float32."""
        call, (q, k, v, kv_len) = self._call, self._tensors
        head_size = q.shape[-1]
        centre = k[:, :kv_len:8].float().mean(1, keepdim=True)
        value_centre = v[:, :kv_len].float().mean(1, keepdim=True)
        amplitude = (v[:, :kv_len].float() - value_centre).abs().amax(1, keepdim=True)
        value_scale = amplitude.clamp(min=1e-12) / 448
        rows = rotated(q)
        amplitude = rows.abs().amax(2, keepdim=True).clamp(min=1e-12)
        queries = integers(rows, amplitude)
        factor = amplitude / 127 * (call.scale * _LOG2_E / head_size)

        def rounded(
            key: Tensor, value: Tensor, value_centre: Tensor, there: Tensor
        ) -> tuple[Tensor, ...]:
            """Keys [N, tiles, n, D], their factors [N, tiles, 1, 1], and values."""
            key = rotated(key.float() - centre[:, None])
            largest = key.abs().amax((2, 3), keepdim=True).clamp(min=1e-12)
            value = (value.float() - value_centre[:, None]) / value_scale[:, None]
            return integers(key, largest), largest / 127, _with_errors_passed_on(value, there)

        table = _tile_table(call)
        there = (table >= 0) & (table < kv_len)  # [tiles, n]
        at = table.clamp(min=0)
        # Whatever is not there becomes the centre, which counts for no amplitude and no sum.
        k_there, v_there = (
            torch.where(there[..., None], x[:, at].float(), middle[:, None])
            for x, middle in ((k, centre), (v, value_centre))
        )
        keys, key_factor, values = rounded(k_there, v_there, value_centre, there)
        kept = torch.stack(self._keys)[:, :, at] & there  # [N, S, tiles, n]
        softmax = _Softmax(q)
        own = _tile_of_middle(call, table)
        for its_own, tile in itertools.product((True, False), range(len(table))):
            rows = ((own == tile) == its_own).nonzero()[:, 0]
            if not len(rows):
                continue
            scores = queries[:, rows] @ keys[:, tile].mT * (factor[:, rows] * key_factor[:, tile])
            scores = scores.masked_fill(~kept[:, rows, tile], -math.inf)
            softmax.add(scores, values[:, tile], rows)

        output_centre = value_centre - value_scale * values.sum((1, 2))[:, None] / kv_len
        if call.windows is not None:
            pseudo = [call.windows.pseudo(*pair, kv_len) for pair in zip(k, v, strict=True)]
            all_keys, all_values = (torch.stack(x) for x in tuple(zip(*pseudo, strict=True))[:2])
            bias = torch.stack(
                [torch.where(means, pseudo[0][2] * _LOG2_E, -math.inf) for means in self._means]
            )
            # Tiles of pseudo-keys are as long as by default, whatever blocks a problem asks for.
            tiles = (
                x.split(block_shape(head_size, "8bit").k, dim)
                for x, dim in ((all_keys, 1), (all_values, 1), (bias, 2))
            )
            for key, value, left_out in zip(*tiles, strict=True):
                there = torch.ones(1, key.shape[1], dtype=torch.bool, device=key.device)
                key, key_factor, value = (
                    x[:, 0] for x in rounded(key[:, None], value[:, None], output_centre, there)
                )
                scores = queries @ key.mT * (factor * key_factor) + left_out
                softmax.add(scores, value)
        output = softmax.output / softmax.sum * value_scale + output_centre
        shift = q.float() @ centre.mT * call.scale
        lse = softmax.reference / _LOG2_E + softmax.sum.log() + shift
        return output, lse[..., 0]


def _tile_table(call: Call) -> Tensor:
    """int64 [tiles, n]: the tokens of every tile of keys in the kernels' order, -1 behind them."""
    if call.windows is None:
        spans = [(block.begin, block.end) for block in call.k_blocks]
        return _spans(spans, call.device)
    cut: WindowCut = call.windows.k_cut
    runs = cut.sink_runs()
    lead, trail = runs[: cut.leading_sinks], runs[cut.leading_sinks :]
    tables = [_spans(lead, call.device), call.windows.k_tokens, _spans(trail, call.device)]
    width = max(table.shape[1] for table in tables)
    return torch.cat(
        [torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-1) for x in tables]
    )


def _with_errors_passed_on(values: Tensor, there: Tensor) -> Tensor:
    """[N, tiles, n, D] in e4m3: of every four three get a quarter of what the one before lost."""
    result, lost = torch.empty_like(values), torch.zeros_like(values[..., 0, :])
    for row in range(values.shape[-2]):
        passed_on = there[:, row, None] & (row % 4 > 0)
        wanted = values[..., row, :] + torch.where(passed_on, lost / 4, 0.0)
        result[..., row, :] = e4m3(wanted)
        lost = wanted - result[..., row, :]
    return result


def _tile_of_middle(call: Call, table: Tensor) -> Tensor:
    """int64 [S]: the tile with the middle token of each query's block."""
    tile_of = torch.empty(call.layout.tokens, dtype=torch.int64, device=call.device)
    tile_of[table[table >= 0]] = (table >= 0).nonzero()[:, 0]
    middle = torch.empty_like(tile_of)
    if call.windows is None:
        for block in call.q_blocks:
            middle[block.begin : block.end] = (block.begin + block.end) // 2
        return tile_of[middle]
    for begin, end in call.windows.q_cut.sink_runs():
        middle[begin:end] = (begin + end) // 2
    frames, height, width = call.windows.q_cut.grid
    places = torch.cartesian_prod(*(torch.arange(n) for n in (frames, height, width)))
    places = places.view(-1, 3).to(call.device)
    for row in call.windows.q_tokens:
        tokens = row[row >= 0]
        at = places[tokens - call.layout.free_begin]
        t, h, w = ((at.amin(0) + at.amax(0) + 1) // 2).tolist()
        middle[tokens] = call.layout.free_begin + (t * height + h) * width + w
    return tile_of[middle]


def _spans(spans: list[tuple[int, int]], device: torch.device) -> Tensor:
    """int64 [spans, n]: the tokens of [begin, end) each, -1 behind them."""
    ends = torch.tensor(spans, dtype=torch.int64).view(-1, 2)
    width = max((end - begin for begin, end in spans), default=0)
    tokens = ends[:, :1] + torch.arange(width)
    return torch.where(tokens < ends[:, 1:], tokens, -1).to(device)


class _Softmax:
    """The kernels' online softmax, a row of scores for every query of every head."""

    def __init__(self, q: Tensor) -> None:
        self.reference = torch.full((*q.shape[:2], 1), -math.inf, device=q.device)
        self.sum = torch.zeros_like(self.reference)
        self.output = torch.zeros(q.shape, device=q.device)

    def add(self, scores: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
        """A tile's scores to base 2, -infinity for no pair, and values [N, n, D].

        Scores are [N, S, n], or those of some `rows` alone.
        """
        at = slice(None) if rows is None else rows
        reference = self.reference[:, at]
        from_maxima = scores.amax(2, keepdim=True) - 8  # the first probabilities are up to 2^8
        begun = reference.isfinite()
        old = torch.where(begun, reference, from_maxima)
        old = torch.where(old.isfinite(), old, 0.0)  # rows that have not begun yet
        # Each of the four threads that share a row has two of every eight keys.
        p = torch.nn.functional.pad(torch.exp2(scores - old), (0, -scores.shape[2] % 8))
        largest = p.view(*p.shape[:2], -1, 4, 2).sum((2, 4)).amax(2, keepdim=True)
        most = p.amax(2, keepdim=True)
        power = torch.floor(torch.log2(most * (64 / largest)))
        by = torch.where(largest > 448, torch.log2(most) - power, 0.0)
        by = torch.where(largest <= 1e30, by, (from_maxima - old).clamp(min=0.0))
        by = torch.where(begun, by, 0.0)
        new = old + by
        p = torch.exp2(scores - new)
        factor = torch.exp2(-by)
        self.sum[:, at] = self.sum[:, at] * factor + p.sum(2, keepdim=True)
        self.output[:, at] = self.output[:, at] * factor + e4m3(p) @ values
        self.reference[:, at] = torch.where(begun | from_maxima.isfinite(), new, -math.inf)
