"""Rules brought to one realised density, pseudo-keys counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.film.evaluate import Evaluator, total
from benchmarks.film.rules import Rule

TOLERANCE = 0.003
TRIALS = 6
LEAST, MOST = 0.005, 0.998  # sparsities that are tried


@dataclass(frozen=True)
class Match:
    """The sparsity at which a rule came nearest a density, and the density it had there."""

    sparsity: float
    density: float


def realised(evaluator: Evaluator, rule: Rule) -> float:
    """Density of a rule over the first case of every process."""
    if evaluator.mine:
        evaluator.run(rule, evaluator.cases[evaluator.mine[0]])
    _, everything, _, calls = total(rule.tally.sums, evaluator.device)
    return everything / calls


def match(density_at: Callable[[float], float], wanted: float, first: float) -> Match:
    """Find the sparsity that gives a density, which falls with it, by false position.

    Parameters
    ----------
    density_at
        Density at a sparsity, measured.
    first
        The sparsity to begin with.
    """
    low, high = (LEAST, 1.0), (MOST, 0.0)  # sparsity and density on either side
    best: Match | None = None
    at = min(MOST, max(LEAST, first))
    for trial in range(TRIALS):
        found = density_at(at)
        if best is None or abs(found - wanted) < abs(best.density - wanted):
            best = Match(at, found)
        if abs(found - wanted) <= TOLERANCE:
            break
        if found > wanted:
            low = (at, found)
        else:
            high = (at, found)
        share = (low[1] - wanted) / max(low[1] - high[1], 1e-9)
        # Every other trial halves, because steps of whole windows can hold one side in place.
        at = low[0] + (high[0] - low[0]) * (share if trial % 2 == 0 else 0.5)
        at = round(min(MOST, max(LEAST, at)), 4)
    assert best is not None
    return best


def matched(
    evaluator: Evaluator, make: Callable[[float], Rule], wanted: float, first: float
) -> Match:
    """The sparsity that brings a rule to a density on this evaluator's first cases."""
    return match(lambda s: realised(evaluator, make(s)), wanted, first)
