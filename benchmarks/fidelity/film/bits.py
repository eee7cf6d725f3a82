"""What 8 bits change beside what sparsity does: velocity, loss and flicker at fixed noise.

Dense attention of the package in 16 bits is the floor: its bfloat16 differs from torch's in where
it rounds. Then 8 bits dense, other implementations of them where their sources are given, and
piecewise at one sparsity in both precisions. Errors of attention itself are on q, k and v of some
layers, against float64.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.attention.captured import Captured, errors_of, save
from benchmarks.attention.peers.rivals import Peer, Trees, peers_of
from benchmarks.fidelity.film.bench import Bench
from benchmarks.film.evaluate import Evaluator, total
from benchmarks.film.model import Attending
from benchmarks.film.product import OperatorRule
from benchmarks.film.report import Report
from benchmarks.film.rules import Rule, Tally
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator.settings import Precision

logger = logging.getLogger(__name__)
SPARSITY = 0.8
METHOD = "piecewise"
FLOOR = "dense, 16 bits"
DENSE: dict[Precision, str] = {"16bit": FLOOR, "8bit": "dense, 8 bits"}
SPARSE: dict[Precision, str] = {"16bit": METHOD, "8bit": f"{METHOD}, 8 bits"}
PARTS = 3  # of the layers, each of whose first is looked at


@dataclass
class PeerRule:
    """Another implementation of dense attention, instead of torch's."""

    name: str
    peer: Peer
    sparsity: float = 0.0
    tally: Tally = field(default_factory=Tally)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.tally.add(1.0, 1.0, 1.0)
        bf16 = (x[None].to(torch.bfloat16) for x in (q, k, v))
        return self.peer.attention(*bf16)[0].to(q.dtype)


def measure_bits(
    bench: Bench, output: Path, shots: int, until: float, trees: Trees | None = None
) -> Report:
    """All rows on all sources, written as ``bits_SEED.json`` after every one.

    Parameters
    ----------
    until
        Monotonic time after which no rule is begun.
    trees
        Sources of other implementations.
    """
    scene = bench.scene
    peers = peers_of(trees or Trees(), [(scene.head_size, scene.tokens)])
    evaluators = {source.name: bench.evaluator(source, shots) for source in bench.sources}
    film = evaluators["film"]
    report = Report(
        output,
        f"{bench.prefix}bits_{bench.seed}",
        {
            "seed": bench.seed,
            "processes": dist.get_world_size(),
            "grid": list(scene.grid),
            "dense_loss": {name: e.dense_loss() for name, e in evaluators.items()},
            "complete": False,
        },
        "weights in bfloat16; errors against torch's dense attention",
    )
    for name, make in rules(bench, peers).items():
        for source, evaluator in evaluators.items():
            if total([float(time.monotonic() > until)], bench.device)[0]:
                logger.info("out of time before %s", name)
                return report
            try:
                row = evaluator.measure(make())
            except UnsupportedError as error:  # as head sizes without 8 bits are, in every process
                row = {"rule": name, "not_run": str(error)}
            report.rows.append({"source": source, **row})
            _write(report, film)
    report.facts["attention"] = errors_of_layers(film, peers, output)
    report.facts["shares"] = shares(report.rows)
    report.facts["complete"] = True
    _write(report, film)
    return report


def rules(bench: Bench, peers: Sequence[Peer]) -> dict[str, Callable[[], Rule]]:
    """What is measured, by name."""

    def ours(name: str, sparsity: float, precision: Precision) -> Callable[[], Rule]:
        return lambda: OperatorRule(name, sparsity, bench.scene, METHOD, precision=precision)

    made = {name: ours(name, 0.0, precision) for precision, name in DENSE.items()}
    for peer in peers:
        if peer.ready is None:  # those that round beforehand compute the same
            name = f"dense, {peer.name}"
            made[name] = lambda name=name, peer=peer: PeerRule(name, peer)  # type: ignore[misc]
    return made | {name: ours(name, SPARSITY, precision) for precision, name in SPARSE.items()}


def shares(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By source: the error of each dense rule as a share of that of piecewise in 16 bits."""
    result: dict[str, dict[str, float]] = {}
    for source in dict.fromkeys(row["source"] for row in rows):
        errors = {
            row["rule"]: row["velocity"]["mean"]
            for row in rows
            if row["source"] == source and "velocity" in row
        }
        whole = errors.get(SPARSE["16bit"])
        if whole:
            result[source] = {name: error / whole for name, error in errors.items()}
    return result


class _Keeping:
    """Attention that keeps what some calls got."""

    def __init__(self, calls: Sequence[int]) -> None:
        self.kept: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._calls = calls
        self._seen = 0

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._seen in self._calls:
            self.kept[f"layer{self._seen}"] = (q[None], k[None], v[None])
        self._seen += 1
        return torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None])[0]


def errors_of_layers(film: Evaluator, peers: Sequence[Peer], folder: Path) -> list[dict[str, Any]]:
    """Errors of attention on q, k and v of some layers in the first case, in process 0."""
    if film.rank != 0:
        return []
    scene = film.scene
    keeping = _Keeping([i * scene.layers // PARTS for i in range(PARTS)])
    with torch.no_grad(), Attending(keeping, scene.tokens):
        film.forward(film.cases[0])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"layers_{film.seed}.safetensors"
    save(file, keeping.kept, scene.grid, "first")
    try:
        return errors_of(Captured(file), peers, film.device)
    except UnsupportedError as error:
        return [{"not_run": str(error)}]


def _write(report: Report, film: Evaluator) -> None:
    if film.rank != 0:
        return
    report.write()
    row = report.rows[-1]
    if "velocity" in row:
        logger.info(
            "%-25s %-6s velocity %.5f loss %+.3f %%",
            row["rule"],
            row["source"],
            row["velocity"]["mean"],
            100 * row["loss"]["mean"],
        )
