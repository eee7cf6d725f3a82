"""Result files as Markdown: a heading that says how it was measured, and tables."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def heading(name: str, record: dict[str, Any], *, level: int = 3) -> str:
    """Title, device, date, command, versions and note of a result file."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    note = f" Note: {record['note']}." if record.get("note") else ""
    return (
        f"{'#' * level} {name}\n\n{record['device']}, {record['date']}. Command: "
        f"`{record['command']}`. Versions: {versions}.{note}\n"
    )


def markdown(rows: list[Row]) -> str:
    """A table with a column for each key; what a row lacks stays empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    titles = (column.replace("_", " ") for column in columns)
    lines = [f"| {' | '.join(titles)} |", f"|{' --- |' * len(columns)}"]
    for row in rows:
        lines.append(f"| {' | '.join(cell(row.get(column)) for column in columns)} |")
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list):
        return ", ".join(cell(item) for item in value)
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1 else f"{value:g}"
    return str(value).replace("|", "\\|")
