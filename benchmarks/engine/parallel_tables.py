"""Tables of the runs on several GPUs."""

from __future__ import annotations

from benchmarks.tables import Row, markdown


def parallel(rows: list[Row]) -> str:
    """Diffusers' context parallelism, dense and sparse, eager and compiled."""
    times = {row["run"]: row for row in rows if row["what"] == "time of one forward"}
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
    return f"{_facts(rows[0])}\n\n{markdown(table)}"


def several(rows: list[Row]) -> str:
    """A forward, its attention, the exchange and memory, on one GPU and on all."""
    error = next(row["relative_error"] for row in rows if "relative_error" in row)
    share = next((row["share"] for row in rows if "share" in row), None)
    facts = [f"relative error against one GPU {error:.1e}"]
    if share is not None:
        facts.append(f"peak memory less weights {share:g} of one GPU's")
    times = [
        {"what": row["what"], "run": row["run"], "ms": row["ms"], "least": row["ms_min"]}
        for row in rows
        if "ms" in row
    ]
    gains = "".join(
        f"* {row['run']}: {row['times']:g} times faster\n"
        for row in rows
        if row["what"] == "speed-up"
    )
    return (
        f"{_facts(rows[0])} s = {rows[0]['sparsity']:g}; {'; '.join(facts)}.\n\n"
        f"{markdown(times)}\n{gains}"
    )


def _facts(row: Row) -> str:
    return (
        f"{row['model']}, {row['size']}, blocks of each kind: {row['layers']}, method "
        f"{row['method']}, {row['processes']} GPUs."
    )
