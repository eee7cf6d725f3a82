"""A run of one process needs no port, so that several fit on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch
import torch.distributed as dist
from benchmarks.film.processes import process_group

with process_group(cpu=True) as device:
    total = torch.ones(2)
    dist.all_reduce(total)
    print(dist.get_rank(), dist.get_world_size(), device, total.tolist(), flush=True)
    input()
"""


def test_two_runs_of_one_process_at_once():
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "MASTER_PORT")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    runs = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, **pipes)
        for _ in range(2)
    ]
    try:
        for run in runs:  # both are in their groups before either may leave
            assert run.stdout.readline() == "0 1 cpu [1.0, 1.0]\n"
        for run in runs:
            run.communicate("\n", timeout=60)
            assert run.returncode == 0
    finally:
        for run in runs:
            run.kill()
