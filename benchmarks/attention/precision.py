"""Time attention of 8 bits beside that of 16, cuDNN's and the peers', in turn in one run.

    python -m benchmarks.attention.precision [--shapes hunyuanvideo-720p ...] [--name precision]
        [--flash-attention DIR --cutlass DIR] [--sage-attention DIR] [--tensors FILE]

q, k and v are random normal. Every round takes the precisions at every sparsity and the dense
attention of cuDNN and the peers in an order of its own, and each timing follows an untimed replay
of the same call. Rounding to 8 bits is in every time, but for those named rounded-before. Peers are
compiled here. The error is that of dense rows of two heads against float64. Parts are the device
time of each kernel of one call, by the profiler.

``--tensors`` times nothing: it writes the errors on q, k and v of a file, see captured.py.
"""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch.profiler import ProfilerActivity, profile

from benchmarks.attention.accuracy import dense_error
from benchmarks.attention.baselines import cudnn
from benchmarks.attention.captured import METHOD, Captured, errors_of
from benchmarks.attention.methods import time_in_turn
from benchmarks.attention.peers.rivals import (
    BUILD,
    WRONG,
    BuildOption,
    CutlassOption,
    FlashAttentionOption,
    Peer,
    SageAttentionOption,
    Trees,
    peers_of,
)
from benchmarks.attention.shapes import SHAPES, Shape
from benchmarks.attention.timing import first_line, graph_capture
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import PRECISIONS

logger = logging.getLogger("rainfusion_trt.bench")
app = typer.Typer(add_completion=False, help=__doc__)
CUDNN = "cudnn"
CHOSEN = ("cogvideox-5b", "hunyuanvideo-720p", "wan2.1-14b-720p")  # head sizes that 8 bits have
_NOTE = " ".join((__doc__ or "").split("\n\n")[2].split())
_TENSORS_NOTE = "relative errors of 256 rows of every head against float64; nothing is timed"
Row = dict[str, Any]
Run = Callable[[], Any]
Key = tuple[str, float, str]


@app.command()
def main(
    shapes: Annotated[list[str] | None, typer.Option(help=f"Of {', '.join(CHOSEN)}.")] = None,
    sparsities: Annotated[list[float] | None, typer.Option(help="Beside 0, dense.")] = None,
    rounds: Annotated[int, typer.Option(help="Timings of each case.", min=5)] = 7,
    flash_attention: FlashAttentionOption = None,
    cutlass: CutlassOption = None,
    sage_attention: SageAttentionOption = None,
    peers_build: BuildOption = BUILD,
    tensors: Annotated[Path | None, typer.Option(help="Layers of a model, safetensors.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the JSON file.")] = None,
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Time the precisions and write ``precision.json``, anew after every shape."""
    if unknown := [shape for shape in shapes or () if shape not in CHOSEN]:
        raise InvalidInputError(f"--shapes {', '.join(unknown)}: known are {', '.join(CHOSEN)}")
    trees = Trees(flash_attention, cutlass, sage_attention, peers_build)
    captured = None if tensors is None else Captured(tensors)
    if not torch.cuda.is_available():
        raise InvalidInputError("there is no CUDA GPU to measure on")
    device = torch.device("cuda")
    if captured is not None:
        peers = peers_of(trees, captured.sizes())
        rows = errors_of(captured, peers, device)
        path = write_result(name or "precision_tensors", rows, note=_TENSORS_NOTE, folder=output)
        logger.info("wrote %s", path)
        return
    chosen = {shape: SHAPES[shape] for shape in shapes or CHOSEN}
    peers = peers_of(trees, {(s.head_size, s.layout().tokens) for s in chosen.values()})
    rows, notes = [], [_NOTE]
    for label, shape in chosen.items():
        turn = Turn(shape, tuple(sparsities or (0.64, 0.8, 0.9)), peers, device)
        rows += measure(label, turn, rounds)
        notes += [f"{label}: {why}" for why in turn.left_out]
        del turn  # its tensors, before those of the next shape
        path = write_result(name or "precision", rows, note="; ".join(notes), folder=output)
        logger.info("wrote %s", path)


class Turn:
    """What is timed in turn on one shape.

    Attributes
    ----------
    runs
        A call of every case: ours in both precisions at every sparsity, cuDNN and the peers dense.
    density
        Of every case.
    errors
        Of those that are dense, against float64.
    left_out
        Why a peer is not among them: it failed, or its result is wrong.
    """

    def __init__(
        self, shape: Shape, sparsities: Sequence[float], peers: Sequence[Peer], device: torch.device
    ) -> None:
        self.shape, self.versions = shape, {peer.name: peer.version for peer in peers}
        layout = shape.layout()
        generator = torch.Generator(device).manual_seed(0)
        size = (3, shape.batch, shape.heads, layout.tokens, shape.head_size)
        drawn = torch.randn(size, generator=generator, device=device, dtype=torch.bfloat16)
        q, k, v = drawn.unbind(0)
        self._inputs = q, k, v
        self.runs: dict[Key, Run] = {(CUDNN, 0.0, "all"): partial(cudnn, q, k, v)}
        self.density = {(CUDNN, 0.0): 1.0}
        for precision in PRECISIONS:
            for s in (0.0, *sparsities):
                given: dict[str, Any] = {
                    "text": layout.text,
                    "method": METHOD,
                    "precision": precision,
                    "sparsity": torch.full((1,), s, device=device),
                }
                plan = classify_heads(q, k, layout.grid, **given)
                self.density[precision, s] = plan.density.mean().item()
                self.runs[precision, s, "all"] = partial(
                    rainfusion_attention, q, k, v, layout.grid, **given
                )
        self.errors: dict[Key, float] = {}
        for key, run in self.runs.items():  # once all: what a first call makes cannot be captured
            out = run()
            if key[1] == 0:
                self.errors[key] = dense_error(q, k, v, out)
            del out
        self.left_out: list[str] = []
        for peer in peers:
            self._add(peer)

    def _add(self, peer: Peer) -> None:
        """Add a peer's run if it gives attention; the others are timed all the same."""
        try:
            run = peer.run_of(*self._inputs)
            error = dense_error(*self._inputs, run())
        except Exception as failure:
            self.left_out.append(f"{peer.name}: {first_line(failure)}")
            logger.warning("%s", self.left_out[-1], exc_info=failure)
            return
        if not error < WRONG:
            self.left_out.append(f"{peer.name}: wrong result, relative error {error:.2g}")
            logger.warning("%s", self.left_out[-1])
            return
        key = peer.name, 0.0, "all"
        self.runs[key], self.errors[key], self.density[peer.name, 0.0] = run, error, 1.0


def measure(name: str, turn: Turn, rounds: int) -> list[Row]:
    """Rows of one shape: time every case once a round."""
    captured = graph_capture()
    times = time_in_turn({key: captured(run) for key, run in turn.runs.items()}, rounds)
    dense = statistics.median(times[CUDNN, 0.0, "all"])
    rows = []
    for key, run in turn.runs.items():
        precision, s, _ = key
        median, density = statistics.median(times[key]), turn.density[precision, s]
        row: Row = {
            "shape": name,
            "precision": precision,
            "sparsity": s,
            "ms": round(median, 3),
            "ms_min": round(min(times[key]), 3),
            "ms_max": round(max(times[key]), 3),
            "rounds": rounds,
            "times_cudnn": round(dense / median, 3),
            "density": round(density, 4),
            "tflops": round(turn.shape.dense_work * density / median / 1e9, 1),
        }
        if key in turn.errors:
            row["relative_error"] = round(turn.errors[key], 5)
        if precision in turn.versions:
            row["version"] = turn.versions[precision]
        if precision != CUDNN:
            row["parts_ms"] = parts_of(run)
        rows.append(row)
        print(row, flush=True)
    return rows


def parts_of(run: Run) -> dict[str, float]:
    """Milliseconds on the device of every kernel of one call, by its name."""
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    parts: dict[str, float] = {}
    for event in seen.key_averages():
        if event.device_time_total:
            name = short_name(event.key)
            parts[name] = round(parts.get(name, 0.0) + event.device_time_total / 1000, 3)
    return parts


def short_name(signature: str) -> str:
    """A kernel's name without its namespaces and arguments."""
    found = re.search(r"(\w+_?[kK]ernel)\b", signature) or re.search(
        r"(?:void )?(?:(?:\w+|\(anonymous namespace\))::)*(\w+)", signature
    )
    return found.group(1) if found else signature


if __name__ == "__main__":
    run_app(app, show_time=True)
