"""Tables of complete models: every row of a file, and the README's five."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engine.whole_model import COMPILED, EAGER, EIGHT, SPARSE
from benchmarks.tables import NOTHING, Row, markdown

STEPS = 50
_SHORT = {
    EAGER: "diffusers, cuDNN attention",
    COMPILED: "`torch.compile`, cuDNN attention",
    SPARSE: "`torch.compile`, `piecewise`",
    EIGHT: "the same, attention in 8 bits",
}


def render_short(folder: Path) -> str:
    """README.md: HunyuanVideo complete, a step and a clip."""
    file = folder / "whole_hunyuanvideo.json"
    if not file.is_file():
        return NOTHING
    record = json.loads(file.read_text(encoding="utf-8"))
    seconds = {
        row["run"]: row["ms"] / 1e3
        for row in record["rows"]
        if row["what"] == "time of one forward" and row["run"] in _SHORT
    }
    table = [
        {
            "HunyuanVideo 13B, 129 frames of 720p": _SHORT[run],
            "a step, s": f"{value:.2f}",
            "times faster": f"{seconds[EAGER] / value:.2f}",
        }
        for run, value in seconds.items()
    ]
    facts = (
        f"{record['device']}, {record['date']}; random weights, s = {_sparsity(record['rows']):g}"
    )
    clip = folder / "whole_hunyuanvideo_cached-clip.json"
    if clip.is_file():
        rows = json.loads(clip.read_text(encoding="utf-8"))["rows"]
        (row,) = (row for row in rows if row["what"] == f"{STEPS} steps")
        table.append(
            {
                "HunyuanVideo 13B, 129 frames of 720p": f"the same, {STEPS} steps, "
                f"{row['dense_steps']} of them dense, {len(row['skipped'])} left to a step cache",
                "a step, s": f"{row['seconds'] / STEPS:.2f}",
                "times faster": f"{STEPS * seconds[EAGER] / row['seconds']:.2f}",
            }
        )
        facts += "; the clip of the last row ran on another card of the host"
    return f"{facts}\n([more](docs/results.md#whole_hunyuanvideo)).\n\n{markdown(table)}"


def _sparsity(rows: list[Row]) -> float:
    return max(row["sparsity"] for row in rows if "sparsity" in row)


def tables(rows: list[Row]) -> str:
    """A step of a complete model by every forward, then whole clips."""
    of = {what: [row for row in rows if row["what"] == what] for what in {r["what"] for r in rows}}
    network = of["network"][0]
    first = {row["run"]: row for row in of["first forward"]}
    faster = {(row["run"], row["against"]): row["times"] for row in of.get("speed-up", ())}
    dense = list(dict.fromkeys(against for _, against in faster))
    table = [
        {
            "forward": row["run"],
            "s": f"{row['sparsity']:g}",
            "ms": row["ms"],
            **{f"times {name}": faster.get((row["run"], name), "") for name in dense},
            "peak GiB": first[row["run"]].get("peak_gib", ""),
            "first forward, s": first[row["run"]]["seconds"],
        }
        for row in of.get("time of one forward", ())
    ]
    failed = [row for row in rows if "failed" in row or "not_run" in row]
    columns = ("run", "seconds", "how", "skipped", "times_eager")
    clips = [
        {c: len(row[c]) if c == "skipped" else row[c] for c in columns if c in row}
        for what, some in of.items()
        if what.endswith(" steps")
        for row in some
        if "seconds" in row
    ]
    parts = [
        f"{network['parameters'] / 1e9:.1f} billion parameters, {network['blocks']} blocks, "
        f"{network['tokens']} tokens.\n\n{markdown(table)}"
    ]
    parts += [f"Steps:\n\n{markdown(clips)}"] if clips else []
    parts += [f"Not measured:\n\n{markdown(failed)}"] if failed else []
    return "\n".join(parts)
