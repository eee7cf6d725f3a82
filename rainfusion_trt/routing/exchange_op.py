"""``exchange_runs``: two exchanges between devices whose tokens arrive in one tensor.

`torch.distributed` writes what arrives where it is told to, but its operators for torch.compile
make a tensor for each exchange. An operator of ours puts video and text behind one another without
a copy. It waits for what it sends: a compiled graph may write over an operand as soon as the
operator that reads it has returned.

Devices have to exchange in one order. Of torch.distributed's operators Inductor keeps it; of others
it keeps what depends on each other, and chooses the rest by sizes, which differ between devices. So
every exchange takes what the one before it brought.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from rainfusion_trt.operator.ops import custom_operator


@custom_operator(
    "rainfusion::exchange_runs",
    schema="(Tensor first, Tensor last, Tensor? after, SymInt[] first_sent, "
    "SymInt[] first_received, SymInt[] last_sent, SymInt[] last_received, str group) -> Tensor",
)
def exchange_runs(
    first: Tensor,
    last: Tensor,
    after: Tensor | None,
    first_sent: Sequence[int],
    first_received: Sequence[int],
    last_sent: Sequence[int],
    last_received: Sequence[int],
    group: str,
) -> Tensor:
    """Send each device its elements of both, and return what arrives: of `first`, then of `last`.

    Parameters
    ----------
    first, last
        Contiguous, of one type.
    after
        What the exchange before brought; not read.
    first_sent, last_sent, first_received, last_received
        How many elements go to each device, and how many come from it.
    group
        Name of the process group.
    """
    import torch.distributed as dist

    devices = dist.distributed_c10d._resolve_process_group(group)  # type: ignore[arg-type, attr-defined]
    runs = [sum(first_received), sum(last_received)]
    arrived = first.new_empty(sum(runs))
    to_first, to_last = arrived.split(runs)
    dist.all_to_all_single(to_first, first, list(first_received), list(first_sent), devices)
    dist.all_to_all_single(to_last, last, list(last_received), list(last_sent), devices)
    return arrived


@exchange_runs.register_fake
def _exchange_runs_fake(first: Tensor, *others: Any) -> Tensor:
    _, _, _, first_received, _, last_received, _ = others
    return first.new_empty(sum(first_received) + sum(last_received))
