"""The result file of one training, written whole after every rule."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record import write_result


@dataclass
class Report:
    """The measurements of one training.

    Attributes
    ----------
    name
        Name of the file, without its suffix.
    facts
        Facts that hold for all rules.
    rows
        One dictionary a rule.
    """

    folder: Path
    name: str
    facts: dict[str, Any]
    note: str
    rows: list[dict[str, Any]] = field(default_factory=list)

    def go_on(self) -> None:
        """Take over the rules of an earlier file, if it has the same seed and cases."""
        path = self.folder / f"{self.name}.json"
        if not path.exists():
            return
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if all(earlier[key] == self.facts[key] for key in ("seed", "cases")):
            self.facts["training"], self.note = earlier["training"], earlier["note"]
            self.rows = earlier["rows"]

    def write(self) -> Path:
        """Write the file, or leave the one before it as it is."""
        return write_result(
            self.name,
            compact(self.rows),
            note=self.note,
            facts=compact(self.facts),
            folder=self.folder,
        )


def compact(value: Any) -> Any:
    """Floats of six digits, decimals at 1 and above; everything else as it is."""
    if isinstance(value, dict):
        return {key: compact(item) for key, item in value.items()}
    if isinstance(value, list):
        return [compact(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if abs(value) < 1 else round(value, 6)
    return value
