"""Train a small video transformer on film clips, then compare rules of sparse attention.

torchrun --nproc-per-node 4 -m benchmarks.film --data FOLDER --output OUT --seed 1
torchrun --nproc-per-node 4 -m benchmarks.film --data FOLDER --output OUT --seed 1 \
    --scene longer --load-weights WEIGHTS --tune 100
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.film.scene import SCENES

STARTED = time.monotonic()


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="benchmarks.film", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="clips and TAEF2, anywhere below")
    p.add_argument("--output", type=Path, required=True, help="folder for JSON and PNG")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--stage1", type=float, default=150, help="seconds at the coarse grid")
    p.add_argument("--stage2", type=float, default=160, help="seconds at the full grid")
    p.add_argument("--tune", type=float, default=0, help="seconds from loaded weights")
    p.add_argument("--evaluation", type=float, default=200, help="seconds for comparing rules")
    p.add_argument("--limit", type=float, default=555, help="seconds for everything")
    p.add_argument("--shots", type=int, default=8, help="held-out shots, crossed with 3 times")
    p.add_argument("--clips", type=int, default=1, help="most clips of a held-out shot")
    p.add_argument("--hold-out", type=int, default=7, help="one shot in so many is held out")
    p.add_argument("--frames", type=int, default=None, help="most frames of a clip")
    p.add_argument("--save-weights", type=Path, help="folder for the trained weights in bf16")
    p.add_argument("--load-weights", type=Path, help="such a folder, instead of both stages")
    p.add_argument("--scene", choices=SCENES, default="full", help="grid and rules")
    p.add_argument("--dry", action="store_true", help="tiny, on the CPU, in seconds")
    options = p.parse_args()
    if options.load_weights is None and (options.scene != "full" or options.tune):
        p.error(f"--scene {options.scene} and --tune {options.tune:g} need --load-weights")
    if options.load_weights is not None and options.load_weights == options.save_weights:
        p.error(f"--save-weights {options.save_weights} would overwrite the weights it reads")
    return options


def main() -> None:
    """Run on one process of a group that torchrun started."""
    options = parse()
    from benchmarks.film.processes import process_group
    from benchmarks.film.run import run

    with process_group(cpu=options.dry) as device:
        run(options, STARTED, device)


if __name__ == "__main__":
    main()
