"""List the cases that a run times. Data only: nothing is computed here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.attention.shapes import HEADS, MIXED, RANDOM

OURS, PLAN, CUDNN, FLEX, FA3 = "rainfusion", "plan only", "cudnn", "flex", "fa3"
BASELINES = (CUDNN, FLEX, FA3)
_WITH_BLOCK_LISTS = ("spatial", "temporal", RANDOM)  # textural heads keep columns, not blocks


@dataclass(frozen=True)
class Lists:
    """Heads and how much of them is kept.

    The cases of one `Lists` compute the same pairs, but for FlexAttention, whose blocks are its
    own (`flex_lists`).

    Attributes
    ----------
    heads
        One of ``HEADS``.
    sparsity
        s of method ``rainfusion``; None for random lists.
    density
        Share of pairs to keep; of random lists only, whose s is looked for.
    """

    heads: str
    sparsity: float | None = None
    density: float | None = None

    @property
    def method(self) -> str:
        return "rainfusion2" if self.heads == RANDOM else "rainfusion"

    @property
    def sink_frames(self) -> int:
        """Random lists have no first-frame sink: with it, density .1 is out of reach."""
        return 0 if self.heads == RANDOM else 1

    @property
    def dense(self) -> bool:
        return self.sparsity == 0.0


@dataclass(frozen=True)
class Case:
    """An implementation of attention and the lists it computes: one timing."""

    implementation: str
    lists: Lists


def cases_of(
    heads: Sequence[str] = HEADS,
    sparsities: Sequence[float] = (0.0, 0.5, 0.64, 0.8, 0.9),
    densities: Sequence[float] = (0.1, 0.2, 0.35, 0.55),
    flex_sparsities: Sequence[float] = (0.5, 0.8),
    baselines: Sequence[str] = BASELINES,
) -> list[Case]:
    """All cases of a shape.

    Dense attention does not depend on the kinds of heads: it is timed once a round, on the first of
    `heads`. FlexAttention gets heads whose lists are made of blocks: random ones, and spatial and
    temporal heads at `flex_sparsities`.
    """
    dense = Lists(heads[0] if heads[0] != RANDOM else MIXED, 0.0)
    cases = [Case(OURS, dense), Case(PLAN, dense)] if 0.0 in sparsities else []
    cases += [Case(name, dense) for name in (CUDNN, FA3) if name in baselines]
    for name in heads:
        if name == RANDOM:
            chosen = [Lists(name, density=density) for density in densities]
        else:
            chosen = [Lists(name, s) for s in sparsities if s > 0]
        for lists in chosen:
            cases += [Case(OURS, lists), Case(PLAN, lists)]
            wanted = name == RANDOM or lists.sparsity in flex_sparsities
            if FLEX in baselines and name in _WITH_BLOCK_LISTS and wanted:
                cases.append(Case(FLEX, lists))
    return cases
