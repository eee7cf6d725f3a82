"""Sparse attention on the model that was trained on film, at equal densities.

[torchrun --nproc-per-node N -m | python -m] benchmarks.fidelity.film fixed --weights W --data D
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rainfusion_trt.step_cache.settings import REUSES

STARTED = time.monotonic()


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="benchmarks.fidelity.film", description=__doc__)
    p.add_argument("what", choices=("fixed", "videos", "caching", "schedules", "bits"))
    p.add_argument("--weights", type=Path, required=True, help="of benchmarks.film --save-weights")
    p.add_argument("--data", type=Path, required=True, help="the film and TAEF2, anywhere below")
    p.add_argument("--clips", type=Path, help="folder of real footage")
    p.add_argument("--output", type=Path, required=True, help="folder for what is written")
    p.add_argument("--limit", type=float, default=550, help="seconds for everything")
    p.add_argument("--shots", type=int, default=8, help="fixed: shots of a source, times 3")
    p.add_argument("--only", nargs="*", default=[], help="names of rules; caching: of tasks")
    p.add_argument("--sparsity", type=float, nargs="*", help="of piecewise; sets the densities")
    p.add_argument("--matched", type=Path, help="videos: JSON of `fixed`, for sparsities")
    p.add_argument("--seeds", type=int, default=8, help="videos: generations, and clips to restore")
    p.add_argument(
        "--steps",
        type=int,
        nargs="*",
        default=[30, 8, 4],
        help="videos: denoising; schedules: its first",
    )
    p.add_argument("--shifts", type=float, nargs="*", default=[1, 7], help="schedules: of steps")
    p.add_argument("--dense-above", type=float, nargs="*", help="schedules: limits of noise")
    p.add_argument("--thresholds", type=float, nargs="*", help="caching: of every rule")
    p.add_argument("--reuse", choices=REUSES, nargs="*", default=["output"], help="caching")
    p.add_argument("--max-skips", type=int, default=3, help="caching: the most in a row")
    p.add_argument(
        "--step-ms",
        type=_step_ms,
        nargs="*",
        metavar="S=MS",
        help="caching: a step of another model at every sparsity, 0 too; else measured here",
    )
    p.add_argument("--keep", type=int, default=3, help="videos: pairs written losslessly")
    for peer in ("flash-attention", "cutlass", "sage-attention"):
        p.add_argument(f"--{peer}", type=Path, help="bits: its sources, a rival in 8 bits")
    p.add_argument("--peers-build", type=Path, default=Path("build/peers"), help="bits: folder")
    p.add_argument("--hold-out", type=int, default=7, help="as in training")
    p.add_argument("--frames", type=int, help="as in training")
    p.add_argument("--cpu", action="store_true", help="for tests")
    options = p.parse_args()
    if options.what == "videos" and options.matched is None:
        p.error("videos need --matched: the JSON that `fixed` wrote")
    return options


def _step_ms(text: str) -> tuple[float, float]:
    s, _, milliseconds = text.partition("=")
    return float(s), float(milliseconds)


def main() -> None:
    """Run on one process of a group that torchrun started, or alone."""
    options = parse()
    from benchmarks.attention.peers.rivals import Trees
    from benchmarks.fidelity.film.bench import open_bench
    from benchmarks.fidelity.film.bits import measure_bits
    from benchmarks.fidelity.film.caching import measure_caching
    from benchmarks.fidelity.film.entries import SPARSITIES
    from benchmarks.fidelity.film.fixed import measure_fixed
    from benchmarks.fidelity.film.schedules import measure_schedules
    from benchmarks.fidelity.film.videos import measure_videos
    from benchmarks.film.processes import process_group

    until = STARTED + options.limit
    trees = Trees(
        options.flash_attention, options.cutlass, options.sage_attention, options.peers_build
    )
    with process_group(cpu=options.cpu) as device:
        bench = open_bench(
            options.weights,
            options.data,
            options.clips,
            device,
            options.hold_out,
            options.frames,
        )
        sparsities = options.sparsity or SPARSITIES
        if options.what == "fixed":
            measure_fixed(bench, options.output, options.shots, until, sparsities, options.only)
        elif options.what == "bits":
            measure_bits(bench, options.output, options.shots, until, trees)
        elif options.what == "caching":
            measure_caching(bench, options, until)
        elif options.what == "schedules":
            measure_schedules(bench, options, until)
        else:
            measure_videos(bench, options, until)


if __name__ == "__main__":
    main()
