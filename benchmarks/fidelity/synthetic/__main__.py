"""Error against density of made-up heads that need as many keys as those of released models.

python -m benchmarks.fidelity.synthetic --profile FILE --grid 33 45 80 --output OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.fidelity.synthetic.measure import Setting, measure


def main() -> None:
    """Write ``synthetic_PROFILE.json``."""
    p = argparse.ArgumentParser(prog="benchmarks.fidelity.synthetic", description=__doc__)
    p.add_argument("--profile", type=Path, required=True, help="a CSV: Step,Layer,Head,Sparsity")
    p.add_argument("--grid", type=int, nargs=3, required=True, help="frames, rows, columns")
    p.add_argument("--text", type=int, default=256, help="text tokens before the video")
    p.add_argument("--head-size", type=int, default=128)
    p.add_argument("--groups", type=int, default=8, help="layers of a step, drawn at random")
    p.add_argument("--heads", type=int, default=24, help="most heads of a layer")
    p.add_argument("--rows", type=int, default=256, help="sampled rows of a head")
    p.add_argument("--sparsity", type=float, nargs="*", default=[0.64, 0.8, 0.9, 0.95])
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--cpu", action="store_true", help="for tests")
    options = p.parse_args()
    setting = Setting(
        grid=tuple(options.grid),
        text=options.text,
        head_size=options.head_size,
        groups=options.groups,
        heads=options.heads,
        rows=options.rows,
        sparsities=tuple(options.sparsity),
        seed=options.seed,
    )
    measure(
        options.profile, setting, torch.device("cpu" if options.cpu else "cuda"), options.output
    )


if __name__ == "__main__":
    main()
