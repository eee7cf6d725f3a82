"""Time the gather, the launch that copies the keys of textural heads; `plan_only` leaves it out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile

_ATTENTION, _GATHER = "attention_kernel", "gather_kernel"


def gather_milliseconds(run: Callable[[], object]) -> float:
    """Device time of the gather inside one call of our attention.

    Raises
    ------
    RuntimeError
        The profiler saw no attention, so that a missing launch would mean nothing.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        run()
        torch.cuda.synchronize()
    events = seen.key_averages()
    if not any(_ATTENTION in event.key for event in events):
        raise RuntimeError("the profiler saw no kernel: is CUPTI there, and may it be used?")
    return sum(event.device_time_total for event in events if _GATHER in event.key) / 1000
