"""Make RainFusion and its baselines ready to run on the same tensors."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.attention import flex
from benchmarks.attention.cases import CUDNN, FA3, FLEX, OURS, PLAN, Case
from benchmarks.attention.check import SampledRows, sampled_rows
from benchmarks.attention.flex_lists import flex_lists
from benchmarks.attention.plan import PlannedLists, arguments_of, plan_only, planned
from benchmarks.attention.shapes import RANDOM, Shape, inputs_of, kinds_of
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.operator.geometry import TokenLayout

_FA3_MODULE = "flash_attn_interface"


@dataclass(frozen=True)
class ReadyCase:
    """A case that is ready to run.

    Attributes
    ----------
    lists
        The token pairs it computes.
    rows
        The output it should give, on sampled rows.
    run
        Launch it; returns [B, N, S or more, D], or None if only the plan is made.
    positions
        Position of each token in the output, if not its own.
    """

    case: Case
    lists: PlannedLists
    rows: SampledRows
    run: Callable[[], Tensor | None]
    positions: Tensor | None = None


class Workload:
    """The tensors of one shape, and the work that several of its cases share."""

    def __init__(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        self.shape, self._dtype, self._device = shape, dtype, device
        self._inputs: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._padded: dict[str, list[Tensor]] = {}
        self._lists: dict[object, tuple[PlannedLists, SampledRows]] = {}
        self._grid: flex.BlockGrid | None = None
        self._flex: flex.Attention | None = None

    def ready_case(self, case: Case) -> ReadyCase:
        """Make `case` ready on this shape."""
        layout = self.shape.layout(case.lists.sink_frames)
        q, k, v = self._inputs_of(case.lists.heads)
        if case.lists not in self._lists:
            kinds = kinds_of(self.shape, case.lists.heads)
            lists = planned(q, k, layout, case.lists, kinds)
            self._lists[case.lists] = lists, sampled_rows(q, k, v, layout, lists)
        lists, rows = self._lists[case.lists]
        ready = partial(ReadyCase, case, lists, rows)
        arguments = arguments_of(layout, case.lists, lists.sparsity)
        if case.implementation == PLAN:
            return ready(plan_only(q, k, layout, arguments))
        if case.implementation == CUDNN:
            return ready(partial(cudnn, q, k, v))
        if case.implementation == FA3:
            return ready(flash_attention_3(q, k, v))
        if case.implementation == FLEX:
            return self._prepare_flex(case, layout, lists)
        assert case.implementation == OURS
        # The sparsity is a device tensor here as in an engine, so no host work is timed.
        arguments["sparsity"] = torch.full((1,), lists.sparsity, device=q.device)
        return ready(partial(rainfusion_attention, q, k, v, layout.grid, **arguments))

    def _inputs_of(self, heads: str) -> tuple[Tensor, Tensor, Tensor]:
        name = "textural" if heads == RANDOM else heads  # the same heads
        if name not in self._inputs:
            self._inputs[name] = inputs_of(self.shape, name, self._dtype, self._device)
        return self._inputs[name]

    def _prepare_flex(self, case: Case, layout: TokenLayout, ours: PlannedLists) -> ReadyCase:
        if self._grid is None or self._flex is None:
            # Blocks are cut alike whatever frames are sinks: one grid, one compiled kernel.
            self._grid = flex.BlockGrid(self.shape.layout(), self._device)
            self._flex = flex.compiled_flex()
        heads = case.lists.heads
        if heads not in self._padded:
            self._padded[heads] = [self._grid.pad(x) for x in self._inputs_of(heads)]
        lists = flex_lists(layout, ours)
        rows = sampled_rows(*self._inputs_of(heads), layout, lists)
        mask = self._grid.block_mask(lists.kept)
        run = partial(self._flex, *self._padded[heads], block_mask=mask)
        return ReadyCase(case, lists, rows, run, self._grid.positions)


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """cuDNN's dense attention; torch alone would take FlashAttention-2."""
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def has_flash_attention_3() -> bool:
    return importlib.util.find_spec(_FA3_MODULE) is not None


def flash_attention_3(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """FlashAttention-3's dense attention on copies of q, k, v laid out as it wants them."""
    attention = importlib.import_module(_FA3_MODULE).flash_attn_func
    tensors = [x.transpose(1, 2).contiguous() for x in (q, k, v)]

    def run() -> Tensor:
        out = attention(*tensors)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return run
