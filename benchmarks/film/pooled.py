"""Result files of several trainings, pooled: means, standard errors and paired ratios."""

from __future__ import annotations

import functools
import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
RESAMPLES = 4000


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error over shots, and what each training says."""

    value: float
    stderr: float
    trainings: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Largest less smallest of the trainings."""
        return max(self.trainings) - min(self.trainings)


@dataclass(frozen=True)
class Trainings:
    """Complete result files, by name, all of the same cases."""

    records: dict[str, Record]

    @classmethod
    def read(cls, folder: Path) -> Trainings:
        """Every file of a folder."""
        records = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(folder.glob("*.json"))
        }
        if not records:
            raise SystemExit(f"no result file in {folder}: run benchmarks.film")
        first = next(iter(records.values()))
        for name, record in records.items():
            if not record["complete"]:
                raise SystemExit(f"{name}.json lacks rules: go on with --load-weights")
            if record["cases"] != first["cases"]:
                raise SystemExit(f"{name}.json has other cases than the files before it")
        return cls(records)

    @property
    def first(self) -> Record:
        """One file, for what is the same in all."""
        return next(iter(self.records.values()))

    @property
    def shots(self) -> list[int]:
        """The shot of every case."""
        return [shot for shot, _, _ in self.first["cases"]]

    def rules(self, sparsity: float) -> list[str]:
        """Names of the rules that every file has at a sparsity, in the order of the files."""
        common = set.intersection(*(set(_rules(record)) for record in self.records.values()))
        return [rule for rule, s in _rules(self.first) if s == sparsity and (rule, s) in common]

    def partial_rules(self, sparsity: float) -> list[str]:
        """Names of the rules that some files have at a sparsity and others have not."""
        every = dict.fromkeys(pair for record in self.records.values() for pair in _rules(record))
        common = set(self.rules(sparsity))
        return [rule for rule, s in every if s == sparsity and rule not in common]

    def having(self, *rules: str) -> Trainings:
        """The files that have all of these rules."""
        records = {
            name: record
            for name, record in self.records.items()
            if set(rules) <= {rule for rule, _ in _rules(record)}
        }
        if not records:
            raise KeyError(f"no file has {', '.join(rules)}")
        return Trainings(records)

    def rows(self, rule: str, sparsity: float) -> list[dict[str, Any]]:
        """A rule's row in every file."""
        found = [
            row
            for record in self.records.values()
            for row in record["rows"]
            if (row["rule"], row["sparsity"]) == (rule, sparsity)
        ]
        if len(found) != len(self.records):
            raise KeyError(f"{rule} at s = {sparsity:g} is not in every file")
        return found

    def values(self, rule: str, sparsity: float, measure: str) -> np.ndarray:
        """[trainings, shots]: means over the cases of a shot."""
        shots = self.shots
        places = [[i for i, s in enumerate(shots) if s == shot] for shot in dict.fromkeys(shots)]
        cases = np.array([row[measure]["cases"] for row in self.rows(rule, sparsity)])
        return np.stack([cases[:, place].mean(-1) for place in places], -1)

    def mean(self, rule: str, sparsity: float, measure: str) -> Estimate:
        """Mean over shots, each weighing the same, and trainings.

        Its error is that of the shots, each averaged over trainings.
        """
        values = self.values(rule, sparsity, measure)
        shots = values.mean(0)
        alone = len(shots) == 1  # of which no error is known
        stderr = math.nan if alone else float(shots.std(ddof=1)) / math.sqrt(len(shots))
        return Estimate(float(values.mean()), stderr, tuple(values.mean(1).tolist()))

    def ratio(self, rule: str, other: str, sparsity: float, measure: str) -> Estimate:
        """Ratio of two rules' means in the same training, averaged over trainings.

        Its error is that of a bootstrap over shots; both rules and all trainings are resampled
        together, because they saw the same shots and noise.
        """
        pair = [self.values(name, sparsity, measure) for name in (rule, other)]

        def ratios(weights: np.ndarray) -> np.ndarray:
            return (pair[0] @ weights.T) / (pair[1] @ weights.T)

        number = pair[0].shape[1]
        trainings = ratios(np.ones((1, number)))[:, 0]
        drawn = ratios(_resamples(number)).mean(0)
        stderr = math.nan if number == 1 else float(drawn.std())
        return Estimate(float(trainings.mean()), stderr, tuple(trainings.tolist()))

    def tiles(self, rule: str, sparsity: float) -> float:
        """Work in tiles against dense attention, mean of the trainings."""
        return float(np.mean([row["tiles"] for row in self.rows(rule, sparsity)]))

    def at_work(self, rule: str, tiles: float, measure: str) -> float | None:
        """A rule's mean at a share of dense tiles, on straight lines between its sparsities.

        Both axes are logarithmic. None outside of what was measured.
        """
        sparsities = {s for name, s in _rules(self.first) if name == rule}
        points = sorted(
            (self.tiles(rule, s), self.mean(rule, s, measure).value) for s in sparsities
        )
        work, means = np.log(points).T
        at = math.log(tiles)
        if not work[0] <= at <= work[-1]:
            return None
        return float(np.exp(np.interp(at, work, means)))


@functools.cache
def _resamples(number: int) -> np.ndarray:
    """[resamples, number]: how often each is drawn; the same in every version of Python."""
    generator = random.Random(0)
    drawn = [[int(generator.random() * number) for _ in range(number)] for _ in range(RESAMPLES)]
    return np.array([np.bincount(row, minlength=number) for row in drawn], dtype=float)


def _rules(record: Record) -> list[tuple[str, float]]:
    return [(row["rule"], row["sparsity"]) for row in record["rows"]]
