"""``End``: how a process has left a call that several make, and whether they are in step then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

Exchanges = dict[tuple[int, ...], tuple[int, ...]]
"""How many exchanges a process has begun, by the processes of a group, one for each backend."""


class End(NamedTuple):
    """How a process has left a call, and how far it has come with the others by then.

    Attributes
    ----------
    failed : bool
        Whether by an error.
    agreed : int
        What it has agreed on with all others so far.
    enqueued : int or None
        Calls with exchanges that no process group knows of; None where one of them was enqueued in
        part, and nobody knows which part.
    exchanged : dict
        By the groups that it is in.
    """

    failed: bool
    agreed: int
    enqueued: int | None
    exchanged: Exchanges


def in_step(ends: Sequence[End]) -> bool:
    """Whether nobody waits for anybody, and all can make the next call; the first process first."""
    first = ends[0]
    if not first.failed and not all(end.failed for end in ends):
        return False  # who has no error goes on, and would wait for one that may not
    known: Exchanges = {}
    return all(
        end.agreed == first.agreed
        and end.enqueued is not None
        and end.enqueued == first.enqueued
        and all(known.setdefault(ranks, done) == done for ranks, done in end.exchanged.items())
        for end in ends
    )


def exchanges(mesh: Any) -> Exchanges:
    """Those of this process, in the group of all and in its groups of a mesh.

    The counts are the process groups' own, so that they hold whatever asks for an exchange.
    """
    groups = [mesh[name].get_group() for name in mesh.mesh_dim_names]
    return {
        tuple(dist.get_process_group_ranks(group)): tuple(
            group._get_backend(kind)._get_sequence_number_for_group()
            for kind in group._device_types
        )
        for group in (dist.group.WORLD, *groups)
    }
