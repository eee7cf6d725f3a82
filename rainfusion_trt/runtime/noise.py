"""Noise that a pipeline draws without a generator, from torch's default ones.

A scheduler that adds noise in every step (stochastic sampling, SDE solvers, LCM's) gets no
generator from several pipelines, as those of Wan.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

States = tuple[Tensor, ...]
"""Of the default generators of the CPU and, where it is a GPU, of a device; uint8 on the CPU."""


@contextmanager
def drawn_by_seed(seed: int | None, device: torch.device) -> Iterator[None]:
    """A context in which torch's default generators follow a seed; afterwards they are as before.

    Parameters
    ----------
    seed
        None leaves them alone.
    device
        Where the pipeline computes.
    """
    if seed is None:
        yield
        return
    # Another seed than that of the latents, whose noise would come a second time otherwise.
    first = torch.Generator("cpu").manual_seed(seed)
    own = int(torch.randint(2**62, (1,), generator=first))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(own)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(own)
        yield


def default_states(device: torch.device) -> States:
    """How torch's default generators are now."""
    own = torch.get_rng_state()
    return (own, torch.cuda.get_rng_state(device)) if device.type == "cuda" else (own,)


def set_default_states(states: States, device: torch.device) -> None:
    """Let torch's default generators go on from `default_states`."""
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state, device)


def are_equal(states: States, others: States) -> bool:
    """Whether two are the same."""
    return all(torch.equal(one, other) for one, other in zip(states, others, strict=True))
