"""The processes of one run: those of torchrun, or this one alone."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore


@contextmanager
def process_group(cpu: bool) -> Iterator[torch.device]:
    """Join the group; the first process logs. The device of this process."""
    rank = int(os.environ.get("RANK", "0"))
    logging.basicConfig(
        level=logging.INFO if rank == 0 else logging.WARNING,
        format="[%(relativeCreated)8d ms] %(message)s",
    )
    device = torch.device("cpu")
    if not cpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    backend = "gloo" if cpu else "nccl"
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:  # without a port, of which two runs on one machine would want the same
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield device
    finally:
        dist.destroy_process_group()
