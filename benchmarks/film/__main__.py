"""Train a small video transformer on film clips, then compare rules of sparse attention.

torchrun --nproc-per-node 4 -m benchmarks.film --data FOLDER --output OUT --seed 1
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path

STARTED = time.monotonic()


def parse() -> argparse.Namespace:
    """The command line."""
    p = argparse.ArgumentParser(prog="benchmarks.film", description=__doc__.split("\n")[0])
    p.add_argument("--data", type=Path, required=True, help="clips and TAEF2, anywhere below")
    p.add_argument("--output", type=Path, required=True, help="folder for JSON and PNG")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--stage1", type=float, default=150, help="seconds at the coarse grid")
    p.add_argument("--stage2", type=float, default=160, help="seconds at the full grid")
    p.add_argument("--evaluation", type=float, default=200, help="seconds for comparing rules")
    p.add_argument("--limit", type=float, default=555, help="seconds for everything")
    p.add_argument("--shots", type=int, default=8, help="held-out shots, crossed with 3 times")
    p.add_argument("--hold-out", type=int, default=7, help="one shot in so many is held out")
    p.add_argument("--frames", type=int, default=None, help="most frames of a clip")
    p.add_argument("--save-weights", type=Path, help="folder for the trained weights in bf16")
    p.add_argument("--load-weights", type=Path, help="such a folder: evaluate without training")
    p.add_argument("--dry", action="store_true", help="tiny, on the CPU, in seconds")
    return p.parse_args()


def main() -> None:
    """Run on one process of a group that torchrun started."""
    options = parse()
    import torch.distributed as dist

    from benchmarks.film.run import run

    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="[%(relativeCreated)8d ms] %(message)s",
    )
    if "RANK" not in os.environ:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29531")
    dist.init_process_group("gloo" if options.dry else "nccl")
    try:
        run(options, STARTED)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
