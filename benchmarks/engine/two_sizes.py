"""Run one engine, built and loaded once, at two resolutions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from benchmarks.engine.cases import Case
from benchmarks.engine.eager import Eager, kernel_row
from benchmarks.engine.engines import Engine, Prepared, load, prepare, recipe_of_sizes
from benchmarks.engine.few_layers import CHECKED, EAGER, ENGINE, OPERATOR, Options
from benchmarks.engine.kept import Save
from benchmarks.engine.measure import Forward, Row, error_row, relative_error, release, time_in_turn
from rainfusion_trt.engine.metadata import ENGINE_FILE
from rainfusion_trt.hashing import file_sha256
from rainfusion_trt.models import VideoSize


def measure(
    case: Case, sizes: dict[str, VideoSize], folder: Path, options: Options, save: Save
) -> list[Row]:
    """Measure all rows. The graph was traced at the case's own size."""
    eager = Eager(case)
    recipe = recipe_of_sizes(case, sizes)
    prepared = prepare(
        case, folder, transformer=eager.transformer, recipe=recipe, target=options.target
    )
    release()
    rows = prepared.rows()
    file = engine_file(prepared)
    before = file_sha256(file)
    backend = load(prepared, case)
    for size in (*sizes.values(), next(iter(sizes.values()))):  # and back to the first
        there = eager.at(size)
        rows += _at_size(there, Engine(backend, there.inputs))
        save(rows)
        release()
    for size in sizes.values():
        there = eager.at(size)
        timed = time_in_turn(_timed(there, Engine(backend, there.inputs)), options.rounds)
        rows += [{**row, "size": str(size)} for row in timed]
        save(rows)
    after = file_sha256(file)
    row = {"what": "engine file", "run": ENGINE, "sha256": before, "sha256_after": after}
    if before != after:
        row["failed"] = "the file changed while the engine ran"
    rows.append(row)
    save(rows)
    backend.close()
    if not options.keep:
        prepared.remove()
    return rows


def engine_file(prepared: Prepared) -> Path:
    """The file that must not change from size to size."""
    return prepared.onnx if prepared.engine is None else prepared.engine / ENGINE_FILE


def _at_size(eager: Eager, engine: Engine) -> list[Row]:
    rows = [
        {"what": "attention length", "tokens": eager.tokens, "blocks": eager.case.blocks},
        kernel_row(EAGER, eager, eager),
    ]
    rows.append(error_row(ENGINE, 0.0, EAGER, relative_error(engine(0.0), eager())))
    if engine.sparse:
        error = relative_error(engine(CHECKED), eager.routed(CHECKED))
        rows.append(error_row(ENGINE, CHECKED, OPERATOR, error))
    return [{**row, "size": str(eager.case.size)} for row in rows]


def _timed(eager: Eager, engine: Engine) -> dict[tuple[str, float], Forward]:
    """Warm from the comparison."""
    runs: dict[tuple[str, float], Forward] = {(EAGER, 0.0): eager}
    for s in (0.0, CHECKED) if engine.sparse else (0.0,):
        runs[ENGINE, s] = partial(engine, s)
    # A change of size makes TensorRT set up its context anew; that is no part of a call's time.
    for run in runs.values():
        run()
    return runs
