"""Errors of process groups: which they are, and what to say of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch.distributed as dist

from rainfusion_trt.errors import ParallelError, RainFusionError

_MARKS = ("gloo/", "gloo::", "ProcessGroup", "NCCL", "c10d")  # of errors of process groups


@contextlib.contextmanager
def said_shortly(what: str) -> Iterator[None]:
    """A context whose errors of the network are ours."""
    try:
        yield
    except RainFusionError:
        raise
    except RuntimeError as error:
        raise ParallelError(
            f"the processes of this run cannot {what} ({shortly(error)}): check MASTER_ADDR and "
            "MASTER_PORT, or start it again"
        ) from error


def is_of_groups(error: BaseException) -> bool:
    """Whether a process group or its store raised it, so that another process may be the cause."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(mark in str(error) for mark in _MARKS)
    )


def shortly(error: BaseException) -> str:
    """The first line of an error, not too much of it."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else ""
