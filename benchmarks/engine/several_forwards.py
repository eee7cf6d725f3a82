"""Whole forwards of a transformer whose tokens several GPUs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager
from benchmarks.engine.measure import Row, error_row, relative_error
from benchmarks.engine.parallel import slowest
from benchmarks.engine.several_clock import (
    CALLS,
    Run,
    Way,
    gain_row,
    mesh_of,
    peak_gib,
    shares,
    time_in_turn,
    time_rows,
)
from rainfusion_trt import enable
from rainfusion_trt.parallel.guidance import GuidanceGroups
from rainfusion_trt.parallel.spread import spread as share_tokens
from rainfusion_trt.routing import Routing, compile_blocks
from rainfusion_trt.routing.compiled import keep_order

FORWARD, OVERLAP = "forward", "forward, overlap"
HALVES = "halves of guidance by two groups"
STEP = "a step with guidance"


class Shared(NamedTuple):
    """A transformer, alone or sharing its tokens, and its routing."""

    eager: Eager
    routing: Routing

    def at(self, sparsity: float, module: nn.Module | None = None) -> Tensor:
        """A forward."""
        self.routing.sparsity = sparsity
        return self.eager(module=module)


def forward_rows(
    case: Case, levels: Sequence[float], rounds: int, *, overlap: bool, guidance: bool
) -> list[Row]:
    """Errors, memory and times of forwards and of steps with guidance."""
    sparsity = levels[-1]
    calls = CALLS if case.layers else 1  # a complete model takes seconds
    networks = _networks(case, sparsity, overlap)
    ways: dict[Way, Run] = {
        Way(run, gpus, s): lambda one=one, s=s: one.at(s)  # type: ignore[misc]
        for s in levels
        for (run, gpus), one in networks.items()
    }
    rows = _errors(ways)
    rows += [
        {"what": "routed", "failed": str(one.routing.report())}
        for one in networks.values()
        if one.routing.routed != case.blocks
    ]
    rows += _peaks({way: run for way, run in ways.items() if way.sparsity == sparsity})
    times = time_in_turn(ways, rounds, calls)
    rows += time_rows("time of one forward", times)
    rows += _gains(times)
    if guidance:
        steps = _steps(case, networks, sparsity)
        rows += _errors(steps)
        times = time_in_turn(steps, rounds, calls)
        rows += time_rows(f"time of {STEP}", times)
        rows += _gains(times)
    return rows


def shared(eager: Eager, way: Way, mesh: Any) -> Shared:
    """A transformer enabled, its tokens cut over a mesh where several share them, and compiled."""
    case = eager.case
    routing = enable(eager.transformer, sparsity=way.sparsity, model=case.model, method=case.method)
    overlap = way.run == OVERLAP
    if way.gpus > 1:
        share_tokens(routing, eager.transformer, mesh, head_groups=2 if overlap else 1)
    compile_blocks(routing)
    if overlap:
        keep_order(routing)
    return Shared(eager, routing)


def _networks(case: Case, sparsity: float, overlap: bool) -> dict[tuple[str, int], Shared]:
    """By name and number of GPUs; all have the same weights."""
    alone = Eager(case)
    twins = {Way(FORWARD, 1, sparsity): alone}  # all before one is enabled
    for gpus in shares(dist.get_world_size()):
        for run in (FORWARD, OVERLAP) if overlap else (FORWARD,):
            twins[Way(run, gpus, sparsity)] = alone.twin()
    meshes = {gpus: mesh_of(gpus, case.device) for gpus in {way.gpus for way in twins}}
    return {
        (way.run, way.gpus): shared(eager, way, meshes[way.gpus]) for way, eager in twins.items()
    }


def _steps(
    case: Case, networks: Mapping[tuple[str, int], Shared], sparsity: float
) -> dict[Way, Run]:
    """A step with guidance: both halves by the GPUs that share a clip, or each by half of them."""
    calls = 1 if case.model.guidance_batch else 2
    steps: dict[Way, Run] = {}

    def whole(one: Shared) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for _ in range(calls):
                answer = one.at(sparsity)
            return answer

        return run

    def halves(one: Shared, groups: GuidanceGroups) -> Callable[[], Tensor]:
        def run() -> Tensor:
            groups.begin()
            for _ in range(calls):
                answer = one.at(sparsity, groups)
            return answer

        return run

    for (run, gpus), one in networks.items():
        if run == FORWARD:
            steps[Way(STEP, gpus, sparsity)] = whole(one)
            if (FORWARD, 2 * gpus) in networks:
                groups = GuidanceGroups(one.eager.transformer, case.model, _pair(gpus, case))
                steps[Way(f"{STEP}, {HALVES}", 2 * gpus, sparsity)] = halves(one, groups)
    return steps


def _pair(gpus: int, case: Case) -> Any:
    """The process of the other half of guidance, where `gpus` compute each, and this one."""
    shape = (dist.get_world_size() // (2 * gpus), 2, gpus)
    names = ("clip", "guidance", "ulysses")
    return init_device_mesh(case.device, shape, mesh_dim_names=names)["guidance"].get_group()


def _errors(ways: Mapping[Way, Run]) -> list[Row]:
    """Against the first way of the same sparsity, which is that of one GPU."""
    rows: list[Row] = []
    wanted: dict[float, tuple[str, Tensor]] = {}
    for way, run in ways.items():
        answer = run()
        if way.sparsity not in wanted:
            wanted[way.sparsity] = (f"{way.run}, one GPU", answer)
            continue
        name, expected = wanted[way.sparsity]
        error = slowest(torch.tensor(relative_error(answer, expected)))
        row = error_row(way.run, way.sparsity, name, error)
        rows.append({**row, "gpus": way.gpus})
    return rows


def _gains(times: Mapping[Way, list[float]]) -> list[Row]:
    """Over the first way of the same sparsity."""
    first: dict[float, list[float]] = {}
    rows: list[Row] = []
    for way, values in times.items():
        one = first.setdefault(way.sparsity, values)
        if way.gpus > 1:
            rows.append(gain_row(way, one, values))
    return rows


def _peaks(forwards: Mapping[Way, Run]) -> list[Row]:
    """What a forward allocates beyond what is there before it, on the process with most."""
    rows: list[Row] = []
    whole = 0.0
    for way, run in forwards.items():
        own = peak_gib(run)
        if own is None:
            return []
        peak = slowest(torch.tensor(own))
        row = way.row("peak memory less weights")
        if way.gpus == 1:
            whole = peak
        else:
            row["share"] = round(peak / whole, 3)
        rows.append({**row, "gib": round(peak, 3)})
    return rows
