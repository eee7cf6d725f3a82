"""The attention of one layer on several GPUs: equality, and the exchange's share of its time."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Row, milliseconds, spread
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.operator.native import Problem, Tensors, load_library
from rainfusion_trt.operator.native_parallel import ParallelCalls
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.parallel.exchange import Exchange
from rainfusion_trt.parallel.team import Team
from rainfusion_trt.runtime.denoiser import complete_config


def operator_rows(
    team: Team,
    exchange: Exchange,
    case: Case,
    settings: AttentionSettings,
    sparsity: float,
    rounds: int,
) -> list[Row]:
    """Rows of attention [1, heads, S, D] at the case's size, text included where it is joint."""
    config = complete_config(case.model, case.config)
    extents = case.model.extents(config, case.size, 1)
    grid = tuple(extents[f"grid_{axis}"] for axis in ("frames", "height", "width"))
    joint = case.model.text
    text = 0 if joint == "none" else extents["text_tokens"]
    placed = settings.replace(text=joint)
    heads, size = (config[n] for n in ("num_attention_heads", "attention_head_dim"))
    layer = _Layer(team, exchange, grid, text, heads, size, placed)
    rows: list[Row] = []
    for s in dict.fromkeys((0.0, sparsity)):
        layer.sparsity.fill_(s)
        with exchange.call():
            answer = layer.shared()
        exchange.finish()
        equal = torch.equal(answer, layer.whole()[:, :, layer.rows])
        different = _all(team, float(not equal))
        row: Row = {"what": "attention of a layer", "run": "all, against one", "sparsity": s}
        rows.append({**row, "equal": sum(different) == 0, "relative_error": max(different)})
        times: dict[str, list[float]] = {"all": [], "without exchange": [], "one": []}
        for _ in range(rounds):
            for name, run in (
                ("all", layer.shared),
                ("without exchange", layer.own_heads),
                ("one", layer.whole),
            ):
                team.meet()
                times[name].append(max(_all(team, milliseconds(run))))
        for name, values in times.items():
            rows.append({**row, "run": name, **spread(values)})
        together, inner, one = (statistics.median(times[name]) for name in times)
        rows.append(
            {
                "what": "attention of a layer",
                "run": "speed-up",
                "sparsity": s,
                "times": round(one / together, 3),
                "times_without_exchange": round(one / inner, 3),
                "share_of_exchange": round(1 - inner / together, 4),
            }
        )
    return rows


class _Layer:
    """q, k and v that all GPUs draw alike, and the three ways to attend."""

    def __init__(
        self,
        team: Team,
        exchange: Exchange,
        grid: tuple[int, ...],
        text: int,
        heads: int,
        head_size: int,
        settings: AttentionSettings,
    ) -> None:
        device = team.device
        video = grid[0] * grid[1] * grid[2]
        generator = torch.Generator(device).manual_seed(5)
        size = (3, 1, heads, video + text, head_size)
        drawn = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
        self.q, self.k, self.v = drawn
        self.grid, self.settings = grid, settings
        self.sparsity = torch.zeros(1, device=device)
        share = exchange.share
        tokens = torch.arange(video, device=device).tensor_split(share.parts)[share.rank]
        words = torch.arange(text, device=device)
        first = settings.text == "first"
        parts = [words, text + tokens] if first else [tokens, video + words]
        self.rows = torch.cat(parts)
        own = torch.arange(heads, device=device).tensor_split(share.parts)[share.rank]
        self.of_heads = [x[:, own].contiguous() for x in drawn]
        self.local = [x[:, :, self.rows].contiguous() for x in drawn]
        self.out = torch.empty_like(self.local[0])
        self.calls = ParallelCalls(load_library())
        self.problem = Problem.of(self.local[0], grid, settings)
        size_of = self.calls.workspace_size(self.problem, share)
        self.workspace = torch.empty(size_of, dtype=torch.uint8, device=device)

    def shared(self) -> Tensor:
        q, k, v = self.local
        tensors = Tensors.of(q, k, v, self.out, sparsity=self.sparsity)
        stream = torch.cuda.current_stream(self.out.device).cuda_stream
        space = self.workspace
        self.calls.attention(self.problem, tensors, space.data_ptr(), space.numel(), stream)
        return self.out

    def own_heads(self) -> Tensor:
        return self._attend(*self.of_heads)

    def whole(self) -> Tensor:
        return self._attend(self.q, self.k, self.v)

    def _attend(self, *tensors: Tensor) -> Tensor:
        attend: Callable[..., Any] = rainfusion_attention
        return attend(*tensors, self.grid, sparsity=self.sparsity, **self.settings.attributes())


def _all(team: Team, value: float) -> list[float]:
    """The value of every process."""
    values: list[Any] = [None] * team.world
    dist.all_gather_object(values, value)
    return values
