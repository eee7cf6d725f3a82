"""All rules on a population of made-up heads, at equal densities."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.fidelity.synthetic.attend import DenseRows, attend_rows
from benchmarks.fidelity.synthetic.cuts import Cut, Windows, boxes, runs
from benchmarks.fidelity.synthetic.heads import NOISE, Head, Layout, make_head, recipe_for
from benchmarks.fidelity.synthetic.profiles import Group, pick_groups, read_profile
from benchmarks.fidelity.synthetic.rules import RULES, Rows, Rule, choose, density, rows_of
from benchmarks.film.report import compact
from benchmarks.film.scene import Shape
from benchmarks.record import write_result
from rainfusion_trt.operator.geometry import block_shape
from rainfusion_trt.operator.windows import window_shape

CLASSES = (0.01, 0.05, 0.2, 1.0)  # heads by the share of keys that they need, upper ends


@dataclass(frozen=True)
class Setting:
    """Sizes of one measurement; see the command line."""

    grid: Shape
    text: int
    head_size: int
    groups: int
    heads: int
    rows: int
    sparsities: tuple[float, ...]
    seed: int

    @property
    def layout(self) -> Layout:
        return Layout(self.grid, self.text)


@dataclass(frozen=True)
class Member:
    """A head of the population: its layer, its recipe's share and what it came to."""

    group: int
    head: Head
    rows: Tensor


def measure(profile: Path, setting: Setting, device: torch.device, output: Path) -> Path:
    """Write ``synthetic_PROFILE.json``: a row for each rule and sparsity."""
    begin = time.monotonic()
    groups = pick_groups(read_profile(profile), setting.groups, setting.heads, setting.seed)
    members = populate(groups, setting, device)
    cuts = cuts_of(setting, device)
    errors: dict[tuple[str, float], list[tuple[float, float]]] = {}
    facts: dict[tuple[str, float], dict[str, float]] = {}
    chosen: dict[tuple[str, float], list[Tensor]] = {}
    targets = target_densities(members, setting, cuts["windows"])
    for rule in RULES:
        cut = cuts[rule.cut]
        rows = [
            rows_of(m.head, setting.layout, cut, m.rows, rule.score, setting.seed + i)
            for i, m in enumerate(members)
        ]
        for s, wanted in targets.items():
            kept, found = choose_in_pools(members, rows, setting, cut, rule, wanted)
            mean = sum(float(k.float().mean()) for k in kept) / len(kept) * cut.keys.count
            tiles = cut.tiles(setting.layout, mean, rule.rest != "drop")
            facts[rule.name, s] = {"density": found, "tiles": tiles}
            chosen[rule.name, s] = kept
    for i, member in enumerate(members):
        dense = DenseRows.of(member.head, setting.layout, member.rows)
        for rule in RULES:
            for s in targets:
                out = attend_rows(
                    member.head,
                    setting.layout,
                    cuts[rule.cut],
                    dense,
                    chosen[rule.name, s][i],
                    rule.rest,
                )
                errors.setdefault((rule.name, s), []).append(dense.error(out))
    shares = [m.head.share for m in members]
    rows_out = [
        {"rule": rule.name, "sparsity": s, **facts[rule.name, s]}
        | summary(errors[rule.name, s], shares)
        for s in targets
        for rule in RULES
    ]
    return write_result(
        f"synthetic_{profile.name.split('.csv')[0]}",
        compact(rows_out),
        note="made-up heads whose need of keys follows a published profile; every rule at the "
        "density of piecewise, pseudo-keys counted; relative error of sampled rows",
        facts={
            "profile": profile.name,
            "setting": dataclasses.asdict(setting),
            "noise": NOISE,
            "windows": {n: [c.queries.count, c.keys.count] for n, c in cuts.items()},
            "groups": [[g.step, g.layer] for g in groups],
            "wanted_shares": [share for g in groups for share in g.shares],
            "shares": compact(shares),
            "seconds": round(time.monotonic() - begin, 1),
        },
        folder=output,
    )


def populate(groups: Sequence[Group], setting: Setting, device: torch.device) -> list[Member]:
    """Heads of all groups with their sampled rows."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    members: list[Member] = []
    for number, group in enumerate(groups):
        for share in group.shares:
            seed = 1000 * setting.seed + len(members)
            recipe = recipe_for(share, setting.layout, seed)
            head = make_head(recipe, setting.layout, setting.head_size, device, dtype)
            generator = torch.Generator(device).manual_seed(seed + 500_000)
            rows = torch.randperm(setting.layout.free, generator=generator, device=device)
            members.append(Member(number, head, rows[: setting.rows]))
    return members


def cuts_of(setting: Setting, device: torch.device) -> dict[str, Cut]:
    """Raster blocks, the windows that the package would take, and cubes of about their size."""
    layout = setting.layout
    queries, keys = block_shape(setting.head_size)
    tile = (queries, keys)

    def cut(windows: Callable[[int], Windows]) -> Cut:
        return Cut(windows(queries), windows(keys), tile)

    grid = layout.free_grid
    return {
        "windows": cut(lambda most: boxes(layout, window_shape(grid, most), device)),
        "cubes": cut(lambda most: boxes(layout, cube_shape(grid, most), device)),
        "raster": cut(lambda most: runs(layout, most, device)),
    }


def cube_shape(grid: Shape, most: int) -> Shape:
    """Four frames (or fewer, if there are no more), and the squarest full rectangle of them."""
    t = min(4, grid[0])
    h = max(1, min(grid[1], math.isqrt(most // t)))
    return t, h, max(1, min(grid[2], most // t // h))


def target_densities(members: Sequence[Member], setting: Setting, cut: Cut) -> dict[float, float]:
    """Density of piecewise at every sparsity, mean over the heads."""
    targets = {}
    for s in setting.sparsities:
        keep = max(1, math.ceil(round(cut.keys.count * (1 - s), 6)))
        found = []
        for m in members:
            rows = rows_of(m.head, setting.layout, cut, m.rows, "mean", 0)
            kept = (rows.ranks() < keep) | rows.shared
            found.append(density(setting.layout, cut, kept, "means"))
        targets[s] = statistics.fmean(found)
    return targets


def choose_in_pools(
    members: Sequence[Member],
    rows: Sequence[Rows],
    setting: Setting,
    cut: Cut,
    rule: Rule,
    wanted: float,
) -> tuple[list[Tensor], float]:
    """What every head keeps; heads of a layer, or all, share a threshold if the rule says so."""
    pools: dict[int, list[int]] = {}
    for i, member in enumerate(members):
        pools.setdefault(member.group if rule.pool == "layer" else 0, []).append(i)
    kept: dict[int, Tensor] = {}
    found = 0.0
    for pool in pools.values():
        choice, share = choose([rows[i] for i in pool], setting.layout, cut, rule, wanted)
        kept |= dict(zip(pool, choice, strict=True))
        found += share * len(pool) / len(members)
    return [kept[i] for i in range(len(members))], found


def summary(errors: Sequence[tuple[float, float]], shares: Sequence[float]) -> dict[str, Any]:
    """Mean over heads with its standard error, error of all rows together, means by need of keys.

    Parameters
    ----------
    errors
        Per head, the squared norms of the difference and of the dense rows.
    """
    ratios = [math.sqrt(a / b) for a, b in errors]
    result: dict[str, Any] = {
        "error": statistics.fmean(ratios),
        "stderr": statistics.stdev(ratios) / math.sqrt(len(ratios)) if len(ratios) > 1 else None,
        "pooled": math.sqrt(sum(a for a, _ in errors) / sum(b for _, b in errors)),
    }
    low = 0.0
    by_class = {}
    for high in CLASSES:
        mine = [r for r, share in zip(ratios, shares, strict=True) if low < share <= high]
        by_class[f"{high:g}"] = [statistics.fmean(mine) if mine else None, len(mine)]
        low = high
    return result | {"by_share": by_class}
