"""Make the tables of docs/kernels.md from benchmarks/results/attention*.json and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.attention.cases import CUDNN, FA3, FLEX, OURS, PLAN

Row = dict[str, Any]
BEGIN, END = "<!-- attention: begin -->", "<!-- attention: end -->"


def fill(text: str, records: Sequence[dict[str, Any]]) -> str:
    """`text` with what stands between the markers written anew."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise SystemExit(f"the document needs {BEGIN} and {END} once each, in this order")
    before, rest = text.split(BEGIN)
    content = "\n".join(_section(record) for record in records)
    return f"{before}{BEGIN}\n\n{content}\n{END}{rest.split(END)[1]}"


def _section(record: dict[str, Any]) -> str:
    rows = record["rows"]
    note = f" Note: {record['note']}." if record.get("note") else ""
    parts = [
        f"{record['device']}, {record['date']}. Command: `{record['command']}`.{note}\n",
        "Dense:\n\n" + _markdown(_dense(rows)),
        "Sparse; *of ideal* is own dense time x density over the time, planning included:\n",
    ]
    for shape in _shapes(rows):
        table = [line for turn in _turns(rows, shape) for line in _sparse(turn)]
        parts.append(f"**{shape}**\n\n{_markdown(table)}")
    return "\n".join(parts)


def _turns(rows: Sequence[Row], shape: str) -> list[list[Row]]:
    """Rows of a shape that were timed in turn: those that share a call of cuDNN.

    Files from before all heads of a shape took turns have one for each kind of heads.
    """
    mine = [row for row in rows if row["shape"] == shape]
    if sum(row["rival"] == CUDNN for row in mine) < 2:
        return [mine]
    groups = dict.fromkeys((row["heads"], row["method"]) for row in mine)
    return [[r for r in mine if (r["heads"], r["method"]) == group] for group in groups]


def _dense(rows: Sequence[Row]) -> list[Row]:
    """Dense attention of every implementation, one line per shape."""
    table = []
    for shape in _shapes(rows):
        own = _find(rows, shape=shape, rival=OURS, density=1.0)
        if own is None:
            continue
        cells: Row = {"shape": shape, "D": own["head_size"], "ms": _time(own)}
        cells["TFLOP/s"] = own["tflops"]
        for peer, name in ((CUDNN, "cuDNN"), (FA3, "FlashAttention-3")):
            if row := _find(rows, shape=shape, rival=peer):
                cells |= {f"{name} ms": _time(row), f"{name} TFLOP/s": row["tflops"]}
                cells[f"times faster than {name}"] = _ratio(row, own)
        table.append(cells)
    return table


def _sparse(rows: Sequence[Row]) -> list[Row]:
    """Every list of a turn, beside FlexAttention where it had such heads at this sparsity."""
    dense, peer = _find(rows, rival=OURS, density=1.0), _find(rows, rival=CUDNN)
    table = []
    for row in rows:
        if row["rival"] != OURS or row["density"] == 1.0:
            continue
        same = {key: row[key] for key in ("heads", "method", "sparsity")}
        plan, flex = (_find(rows, rival=name, **same) for name in (PLAN, FLEX))
        is_random = row["method"] == "rainfusion2"
        table.append(
            {
                "heads": "random lists" if is_random else row["heads"],
                "s": "" if is_random else f"{row['sparsity']:g}",
                "density": f"{row['density']:.3f}",
                "ms": _time(row),
                "of it planning": f"{plan['ms'] + row.get('gather_ms', 0):.3f}" if plan else "",
                "TFLOP/s": row["tflops"],
                "of ideal": f"{dense['ms'] * row['density'] / row['ms']:.3f}" if dense else "",
                "times faster than cuDNN dense": _ratio(peer, row),
                # Its blocks are its own, see `flex_lists`; in older results they were ours.
                "FlexAttention density": f"{flex['density']:.3f}"
                if flex and flex["density"] != row["density"]
                else "",
                "FlexAttention ms": _time(flex) if flex else "",
                "FlexAttention TFLOP/s": flex["tflops"] if flex else "",
                "times faster than FlexAttention": _ratio(flex, row),
            }
        )
    return table


def _shapes(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["shape"] for row in rows))


def _find(rows: Sequence[Row], **wanted: Any) -> Row | None:
    """The first row that has these values."""
    return next((r for r in rows if all(r[key] == value for key, value in wanted.items())), None)


def _ratio(peer: Row | None, row: Row) -> str:
    return "" if peer is None else f"{peer['ms'] / row['ms']:.2f}"


def _time(row: Row) -> str:
    """Median, and in brackets the least and the most."""
    return f"{row['ms']:.4g} ({row['ms_min']:.4g}-{row['ms_max']:.4g})"


def _markdown(rows: Sequence[Row]) -> str:
    """A table without columns that are empty throughout."""
    if not rows:
        return "Not run.\n"
    columns = list(dict.fromkeys(key for row in rows for key in row))
    columns = [column for column in columns if any(row.get(column, "") != "" for row in rows)]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    lines += [f"| {' | '.join(str(row.get(column, '')) for column in columns)} |" for row in rows]
    return "\n".join(lines) + "\n"
