"""What the attentions of a forward were."""

from __future__ import annotations

from typing import NamedTuple


class RoutingReport(NamedTuple):
    """The self-attentions of the latest forward, by their names in the transformer.

    Attributes
    ----------
    routed : tuple of str
        Ran as RainFusion attention.
    dense : tuple of str
        Ran as dense attention, which ``allow_dense=True`` permitted.
    skipped : tuple of str
        Did not run: a cache used an earlier output of theirs or of their block.
    """

    routed: tuple[str, ...]
    dense: tuple[str, ...]
    skipped: tuple[str, ...]
