"""What 8-bit operands cost attention in accuracy, by format, scale and transformation, on the CPU.

    python -m benchmarks.attention.eight_bit [--tokens 4096] [--rows 256]

Every row is attention in float32 whose operands, bfloat16 ones, were rounded as it says, against
the same in float64 without rounding. Accumulation inside the tensor cores is emulated where
`promote` is a number: they keep 13 bits below the largest exponent of what they add, 32 keys at a
time, and the sums go to float32 every `promote` keys. The results chose what docs/rainfusion.md
lays down.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.record import RESULTS, write_result
from rainfusion_trt.demo.console import run_app

app = typer.Typer(add_completion=False, help=__doc__)
E4M3_LARGEST = 448.0
TILE = 96  # keys that share a scale where it is one a tile
STEP = 32  # keys of one instruction
ERROR_ROWS = 4  # values that pass their errors on to the next
KEPT_BITS = 13  # of a sum inside the tensor cores, below its largest exponent
Tensors = tuple[Tensor, Tensor, Tensor]


def normal(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    q, k, v = torch.randn(3, tokens, head_size, generator=generator)
    return q, k, v


def key_offset(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """Keys with a large mean in a few channels, as trained models have."""
    q, k, v = normal(tokens, head_size, generator)
    k[:, :4] += 12.0
    return q, k, v


def query_offset(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """Queries with it; their mean cannot be taken off for nothing."""
    q, k, v = normal(tokens, head_size, generator)
    q[:, :4] += 12.0
    return q, k, v


def loud_channels(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """Four channels ten times as large as the others in q and k."""
    q, k, v = normal(tokens, head_size, generator)
    q[:, :4] *= 5.0
    k[:, :4] *= 5.0
    v[:, :4] *= 10.0
    return q, k, v


def heavy_tails(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """Student's t of three degrees of freedom, of unit variance."""
    x = torch.randn(3, tokens, head_size, generator=generator)
    chi = torch.randn(3, 3, tokens, head_size, generator=generator).square().sum(0)
    q, k, v = x / chi.sqrt()
    return q, k, v


def value_offset(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """Values with a mean of twice their spread: products that add up."""
    q, k, v = normal(tokens, head_size, generator)
    return q, k, v + 2.0


def one_loud_key(tokens: int, head_size: int, generator: torch.Generator) -> Tensors:
    """The first key takes about as much of every softmax as all others together."""
    q, k, v = normal(tokens, head_size, generator)
    direction = torch.ones(head_size) / head_size**0.5
    q += 3.0 * direction
    k[0] = direction * (8.4 * head_size**0.5 / 3.0)
    return q, k, v


TENSORS: dict[str, Callable[[int, int, torch.Generator], Tensors]] = {
    f.__name__: f
    for f in (
        normal,
        key_offset,
        query_offset,
        loud_channels,
        heavy_tails,
        value_offset,
        one_loud_key,
    )
}


def hadamard(size: int) -> Tensor:
    """The orthonormal Hadamard matrix of a power of two, in Sylvester's order."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


def e4m3(x: Tensor) -> Tensor:
    return x.clamp(-E4M3_LARGEST, E4M3_LARGEST).to(torch.float8_e4m3fn).float()


def rounded(x: Tensor, kind: str, group: str) -> Tensor:
    """x [S, D] rounded to a format under one scale a row, a tile of rows or the head."""
    if kind == "none":
        return x
    rows = {"row": 1, "tile": TILE, "head": len(x)}[group]
    padded = torch.cat([x, x.new_zeros(-len(x) % rows, x.shape[1])])
    grouped = padded.view(-1, rows * x.shape[1])
    most = 127.0 if kind == "int8" else E4M3_LARGEST
    scale = grouped.abs().amax(1, keepdim=True).clamp(min=1e-12) / most
    scaled = grouped / scale
    values = scaled.round() if kind == "int8" else e4m3(scaled)
    return (values * scale).view_as(padded)[: len(x)]


def passed_on(x: Tensor, share: float) -> Tensor:
    """x [S, D] in e4m3, where of every four rows each gets a share of the error of the last one."""
    if not share:
        return e4m3(x)
    result, lost = torch.empty_like(x), torch.zeros_like(x[::ERROR_ROWS])
    for turn in range(ERROR_ROWS):
        rows = x[turn::ERROR_ROWS]
        wanted = rows + share * lost[: len(rows)] if turn else rows
        result[turn::ERROR_ROWS] = e4m3(wanted)
        lost = wanted - result[turn::ERROR_ROWS]
    return result


def tensor_core_sum(p: Tensor, v: Tensor, promote: int) -> Tensor:
    """p v as the tensor cores add it, in float32 from one promotion to the next."""
    total = torch.zeros(len(p), v.shape[1])
    for first in range(0, p.shape[1], promote):
        kept = torch.zeros_like(total)
        for step in range(first, min(first + promote, p.shape[1]), STEP):
            keys = slice(step, step + STEP)
            terms = torch.cat([kept[None], p[:, keys].T[:, :, None] * v[keys, None]])
            largest = terms.abs().amax(0).clamp(min=1e-30)
            unit = torch.exp2(torch.floor(torch.log2(largest)) - KEPT_BITS)
            kept = (torch.trunc(terms / unit) * unit).sum(0)
        total += kept
    return total


def relative_error(out: Tensor, wanted: Tensor) -> float:
    return ((out.double() - wanted).norm() / wanted.norm()).item()


class Problem:
    """Some query rows of a head against all its keys."""

    def __init__(self, name: str, head_size: int, tokens: int, rows: int) -> None:
        generator = torch.Generator().manual_seed(head_size)
        drawn = TENSORS[name](tokens, head_size, generator)
        q, self.k, self.v = (x.bfloat16().float() for x in drawn)
        self.q = q[torch.linspace(0, tokens - 1, rows).long()]
        self.scale = head_size**-0.5
        weights = torch.softmax(self.q.double() @ self.k.double().T * self.scale, 1)
        self.wanted = weights @ self.v.double()

    def error(
        self,
        qk: str = "int8",
        q_scale: str = "row",
        k_scale: str = "tile",
        centred: bool = True,
        rotated: bool = True,
        pv: bool = True,
        v_centred: bool = True,
        v_recentred: bool = True,
        share: float = 0.25,
        peak: int = 8,
        promote: int = 0,
    ) -> float:
        """Relative error of the output under these roundings."""
        k = self.k - self.k[::8].mean(0) if centred else self.k
        q, k = (x @ hadamard(x.shape[1]) if rotated else x for x in (self.q, k))
        scores = rounded(q, qk, q_scale) @ rounded(k, qk, k_scale).T * self.scale
        # The reference of a row is the largest score of a tile, or of all where that is larger.
        reference = scores[:, :TILE].amax(1, keepdim=True)
        growth = (scores.amax(1, keepdim=True) - reference).clamp(min=0)
        p = torch.exp(scores - reference - growth)
        weight = p.sum(1, keepdim=True)
        v, centre = self.v, torch.zeros(self.v.shape[1])
        if pv:
            centre = v.mean(0) if v_centred else centre
            v_scale = (v - centre).abs().amax(0) / E4M3_LARGEST
            p = e4m3(p * 2.0**peak) / 2.0**peak
            v = passed_on((v - centre) / v_scale, share) * v_scale
            if v_centred and v_recentred:  # rounding has left it with a mean of its own
                centre = centre - v.mean(0)
        product = tensor_core_sum(p, v, promote) if promote else p @ v
        return relative_error(product / weight + centre, self.wanted)


def variants() -> list[dict[str, Any]]:
    """What is measured: one thing changed at a time from what was chosen, and the formats."""
    chosen: dict[str, Any] = {}
    rows = [chosen, {"qk": "none"}, {"pv": False}]
    rows += [{"qk": "e4m3"}, {"qk": "e4m3", "pv": False}]
    rows += [{"k_scale": group} for group in ("row", "head")]
    rows += [{"q_scale": group} for group in ("tile", "head")]
    rows += [
        {"centred": centred, "rotated": rotated, "qk": kind}
        for kind, centred, rotated in itertools.product(("int8", "e4m3"), *[(False, True)] * 2)
        if not (centred and rotated)
    ]
    rows += [{"v_centred": False}, {"v_recentred": False}]
    rows += [{"share": share} for share in (0.0, 0.5)]
    rows += [{"peak": peak} for peak in (0, 3, 5)]
    return rows


@app.command()
def main(
    tokens: Annotated[int, typer.Option(help="Keys.")] = 8192,
    rows: Annotated[int, typer.Option(help="Queries.")] = 192,
    name: Annotated[str, typer.Option(help="Name of the JSON file.")] = "eight_bit",
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure every variant on every kind of tensors and write ``NAME.json``."""
    results: list[dict[str, Any]] = []
    for tensors, head_size in itertools.product(TENSORS, (64, 128)):
        problem = Problem(tensors, head_size, tokens, rows)
        facts = {"tensors": tensors, "head_size": head_size}
        results += [
            {**facts, **variant, "error": round(problem.error(**variant), 5)}
            for variant in variants()
        ]
        few = Problem(tensors, head_size, tokens, 16)
        for promote, centred in itertools.product(
            (TILE, 8 * TILE, 32 * TILE, tokens), (True, False)
        ):
            variant: dict[str, Any] = {"promote": promote, "v_centred": centred}
            exact = few.error(v_centred=centred)
            results.append(
                {
                    **facts,
                    **variant,
                    "error": round(few.error(**variant), 5),
                    "without_accumulation": round(exact, 5),
                }
            )
    also: list[dict[str, Any]] = [{}, {"v_recentred": False}]
    for head_size, many in itertools.product((64, 128), (8 * tokens, 16 * tokens)):
        problem = Problem("normal", head_size, many, rows)
        facts = {"tensors": "normal", "head_size": head_size, "keys": many}
        results += [
            {**facts, **variant, "error": round(problem.error(**variant), 5)} for variant in also
        ]
    note = " ".join((__doc__ or "").split("\n\n")[2].split())
    write_result(
        name, results, note=note, facts={"tokens": tokens, "query_rows": rows}, folder=output
    )


if __name__ == "__main__":
    run_app(app, show_time=True)
