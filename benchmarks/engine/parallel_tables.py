"""Tables of the runs on several GPUs."""

from __future__ import annotations

from benchmarks.tables import Row, markdown

_FORWARD = "time of one forward"


def parallel(rows: list[Row]) -> str:
    """Diffusers' context parallelism, dense and sparse, eager and compiled."""
    times = {row["run"]: row for row in rows if row["what"] == _FORWARD}
    errors = {row["run"]: row["relative_error"] for row in rows if "relative_error" in row}
    table = []
    for row in (row for row in rows if row["what"] == "speed-up"):
        one, every = f"one, {row['run']}", f"all, {row['run']}"
        table.append(
            {
                "forward": row["run"],
                "s": f"{times[one]['sparsity']:g}",
                "one GPU, ms": times[one]["ms"],
                f"{row['processes']} GPUs, ms": times[every]["ms"],
                "times faster": row["times"],
                "error, one GPU": f"{errors[one]:.1e}",
                f"error, {row['processes']} GPUs": f"{errors[every]:.1e}",
            }
        )
    return f"{_facts(rows[0], rows[0]['processes'])}\n\n{markdown(table)}"


def engines(rows: list[Row]) -> str:
    """Engines for one GPU and for all, and their attention with and without the exchange."""
    gpus = rows[0]["gpus"]
    forwards = {(row["run"], row["sparsity"]): row["ms"] for row in rows if row["what"] == _FORWARD}
    errors = {
        (row["run"], row["sparsity"]): row["relative_error"]
        for row in rows
        if row["what"] == "one forward"
    }
    table = []
    for row in (row for row in rows if row["what"] == "speed-up"):
        s = row["sparsity"]
        one, every = (f"one, {row['run']}", s), (f"all, {row['run']}", s)
        table.append(
            {
                "engine": row["run"],
                "s": f"{s:g}",
                "one GPU, ms": forwards[one],
                f"{gpus} GPUs, ms": forwards[every],
                "times faster": row["times"],
                "error against one GPU": f"{errors[every]:.1e}",
            }
        )
    layer = [row for row in rows if row["what"] == "attention of a layer"]
    ms = {(row["run"], row["sparsity"]): row["ms"] for row in layer if "ms" in row}
    equal = {row["sparsity"]: row["equal"] for row in layer if "equal" in row}
    attention = []
    for row in (row for row in layer if row["run"] == "speed-up"):
        s = row["sparsity"]
        attention.append(
            {
                "attention, s": f"{s:g}",
                "one GPU, ms": ms["one", s],
                f"{gpus} GPUs, ms": ms["all", s],
                "times faster": row["times"],
                "without exchange": row["times_without_exchange"],
                "share of the exchange": f"{row['share_of_exchange']:.1%}",
                "equal to the bit": "yes" if equal[s] else "no",
            }
        )
    memory = {row["run"]: row["gib"] for row in rows if row["what"] == "workspace"}
    whole, share = memory["one, launched"], memory["all, launched"]
    return (
        f"{_facts(rows[0], gpus)} Workspace {share:g} GiB instead of {whole:g} "
        f"({share / whole:.3f}).\n\n{markdown(table)}\n{markdown(attention)}"
    )


def several(rows: list[Row]) -> str:
    """Forwards, attention, the exchange and memory, on one GPU and on several."""
    world = rows[0]["processes"]
    errors = [row["relative_error"] for row in rows if "relative_error" in row]
    facts = [f"relative errors against one GPU up to {max(errors):.1e}"]
    facts += [
        f"peak memory less weights of {row.get('gpus', world)} GPUs "
        f"({row['run']}) {row['share']:g} of one GPU's"
        for row in rows
        if "share" in row
    ]
    times = [
        {
            "what": row["what"],
            "run": row["run"],
            "GPUs": row.get("gpus", ""),
            "s": f"{row['sparsity']:g}",
            "ms": row["ms"],
            "least": row["ms_min"],
        }
        for row in rows
        if "ms" in row
    ]
    gains = "".join(
        f"* {row['run']}, {row.get('gpus', world)} GPUs, s = "
        f"{row.get('sparsity', rows[0]['sparsity']):g}: {row['times']:g} times faster\n"
        for row in rows
        if row["what"] == "speed-up"
    )
    return f"{_facts(rows[0], world)} {'; '.join(facts)}.\n\n{markdown(times)}\n{gains}"


def _facts(row: Row, gpus: int) -> str:
    return (
        f"{row['model']}, {row['size']}, blocks of each kind: {row['layers']}, method "
        f"{row['method']}, {gpus} GPUs."
    )
