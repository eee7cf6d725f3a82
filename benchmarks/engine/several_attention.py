"""The attention of one block whose tokens several GPUs share, in parts."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Row, release
from benchmarks.engine.several_clock import (
    Run,
    Way,
    gain_row,
    mesh_of,
    shares,
    time_in_turn,
    time_rows,
)
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.models.layout import AttentionLayout
from rainfusion_trt.routing.parallel import Attend, Ulysses
from rainfusion_trt.routing.site import Tokens

WHOLE, OWN, EXCHANGE = "all heads, one GPU", "own heads", "exchange alone"
SENT = "what is sent, alone"  # the exchange without copies
SHARED, OVERLAPPING = "own heads and exchange", "own heads and exchange, overlap"
PLANNED, EXCHANGED = "attention with planning", "attention with planning and exchange"
_GAINS = {OWN: PLANNED, SHARED: EXCHANGED, OVERLAPPING: f"{EXCHANGED}, overlap"}


def attention_rows(case: Case, levels: Sequence[float], rounds: int, *, overlap: bool) -> list[Row]:
    """Times of the parts, how often faster they are, and the exchange's share."""
    runs = _runs(case, levels, overlap)
    release()
    times = time_in_turn(runs, rounds)
    rows = time_rows("attention of one block", times)
    for way, values in times.items():
        if way.run in _GAINS:
            gain = Way(_GAINS[way.run], way.gpus, way.sparsity)
            rows.append(gain_row(gain, times[Way(WHOLE, 1, way.sparsity)], values))
        if way.run in (SHARED, OVERLAPPING):
            own = statistics.median(times[way._replace(run=OWN)])
            share = round(1.0 - own / statistics.median(values), 3)
            rows.append({**way.row("share of the exchange"), "share_of_time": share})
    return rows


def _runs(case: Case, levels: Sequence[float], overlap: bool) -> dict[Way, Run]:
    """Over normal q, k and v of the model's shape."""
    network = dataclasses.replace(case, layers=1).transformer()  # which say the same
    inputs = case.inputs(network)
    layout = case.model.layout(network, case.model.forward_kwargs(inputs))
    config: Any = network.config
    heads, head_size = config["num_attention_heads"], config["attention_head_dim"]
    del network, inputs
    release()
    place = torch.device(case.device)
    generator = torch.Generator(place).manual_seed(0)
    shape = (case.batch, heads, layout.grid.numel() + layout.text_tokens, head_size)
    q, k, v = (
        torch.randn(shape, generator=generator, device=place, dtype=case.dtype) for _ in range(3)
    )
    attend = {s: _attend(case, layout, s) for s in levels}
    runs: dict[Way, Run] = {Way(WHOLE, 1, s): partial(attend[s], q, k, v) for s in levels}
    tokens = Tokens(layout.grid, layout.text, layout.text_tokens, layout.kv_len is not None)
    for gpus in shares(dist.get_world_size()):
        mesh = mesh_of(gpus, case.device)["ulysses"]
        ulysses = Ulysses(mesh.get_group(), gpus, mesh.get_local_rank())
        mine = sum(ulysses.own(n) for n in (tokens.grid.numel(), tokens.text_tokens))
        own = [ulysses.part(x, dim=1) for x in (q, k, v)]
        local = [x[:, :, :mine].transpose(1, 2).contiguous() for x in (q, k, v)]
        exchanged = partial(_exchanged, tokens, local)
        runs[Way(EXCHANGE, gpus, 0.0)] = partial(exchanged, ulysses, lambda q, _k, _v: q)
        runs[Way(SENT, gpus, 0.0)] = partial(_sent, ulysses, tokens, local[0])
        for s in levels:
            runs[Way(OWN, gpus, s)] = partial(attend[s], *own)
            runs[Way(SHARED, gpus, s)] = partial(exchanged, ulysses, attend[s])
            if overlap:
                both = ulysses._replace(groups=2)
                runs[Way(OVERLAPPING, gpus, s)] = partial(exchanged, both, attend[s])
    return runs


def _attend(case: Case, layout: AttentionLayout, sparsity: float) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return rainfusion_attention(
            q,
            k,
            v,
            layout.grid,
            text=layout.text,
            sparsity=sparsity,
            method=case.method,
            kv_len=layout.kv_len,
        )

    return attend


def _sent(ulysses: Ulysses, tokens: Tokens, own: Tensor) -> Tensor:
    """As much as q, k and v are, sent to other GPUs, and as much as the output is, sent back."""
    batch, _, heads, head_size = own.shape
    row = batch * head_size
    mine = ulysses.own(heads)
    here = [own.shape[1] * row * count for count in ulysses.sizes(heads)]
    parts = (ulysses.sizes(n) for n in (tokens.grid.numel(), tokens.text_tokens))
    there = [(video + text) * row * mine for video, text in zip(*parts, strict=True)]
    arrived, returned = own.new_empty(sum(there)), own.new_empty(sum(here))
    for _ in range(3):
        dist.all_to_all_single(arrived, own.view(-1), there, here, group=ulysses.group)
    dist.all_to_all_single(returned, arrived, here, there, group=ulysses.group)
    return returned


def _exchanged(tokens: Tokens, local: list[Tensor], ulysses: Ulysses, attend: Attend) -> Tensor:
    """This GPU's tokens exchanged for heads, `attend` over the whole clip, and back."""

    def whole(*own: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in own)
        return attend(q, k, v).transpose(1, 2)

    q, k, v = local
    return ulysses.attention(tokens, q, k, v, whole)
