"""Format result files as Markdown: how they were measured, and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = dict[str, Any]
Record = dict[str, Any]
NOTHING = "Nothing has been measured yet.\n"


def heading(name: str, record: Record, *, level: int = 3) -> str:
    """Title, device, date, command, versions and note of a result file."""
    lines = [
        f"* {record['device']}, {record['date']}",
        f"* Command: `{record['command']}`",
        f"* Versions: {versions(record)}",
    ]
    if record.get("note"):
        lines.append(f"* Note: {record['note']}")
    return f"{'#' * level} {name}\n\n" + "\n".join(lines) + "\n"


def versions(record: Record) -> str:
    """The versions that a result depends on, in one line."""
    return ", ".join(f"{name} {version}" for name, version in record["versions"].items())


def sources(records: Mapping[str, Record], folder: str) -> str:
    """Device, date and command of several files, then versions and notes, each said once.

    Parameters
    ----------
    records
        By file name without its ending.
    folder
        Folder of the files, relative to the document.
    """
    parts = [markdown([source(name, record, folder) for name, record in records.items()])]
    for title, text_of in (("Versions", versions), ("Note", _note)):
        files: dict[str, list[str]] = {}
        for name, record in records.items():
            files.setdefault(text_of(record), []).append(name)
        for text, names in files.items():
            of = "" if len(files) == 1 else f" of {', '.join(names)}"
            if text:
                parts.append(f"{title}{of}: {text}.\n")
    return "\n".join(parts)


def source(name: str, record: Record, folder: str) -> Row:
    """One file's line in a table of sources."""
    return {
        "file": f"[{name}]({folder}/{name}.json)",
        "device": record["device"],
        "date": record["date"],
        "command": f"`{record['command']}`",
    }


def markdown(rows: list[Row]) -> str:
    """A table with a column for each key; a missing value leaves its cell empty."""
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


def _note(record: Record) -> str:
    return record.get("note") or ""
