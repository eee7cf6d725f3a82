"""The benchmark of several GPUs, rehearsed with two and four processes and a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.engine import several
from benchmarks.engine.cases import Case
from benchmarks.engine.parallel_tables import several as table
from benchmarks.engine.several_attention import EXCHANGE, OVERLAPPING, OWN, SENT, SHARED, WHOLE
from benchmarks.engine.several_forwards import FORWARD, HALVES, OVERLAP, STEP
from benchmarks.engine.several_plot import draw
from tests.helpers.process_group import in_processes

MODEL = "cogvideox-5b"
_config = Case.config.func


def _rehearse(rank: int, folder: Path, options: list[str], heads: int) -> None:
    import torch._dynamo

    torch._dynamo.config.disable = True  # Inductor takes minutes for it
    Case.config = property(lambda self: {**_config(self), "num_attention_heads": heads})
    command = ["--tiny", "--rounds", "1", "--model", MODEL, "--output", str(folder)]
    result = CliRunner().invoke(several.app, [*command, *options])
    assert result.exit_code == 0, result.output


def _runs(rows, what):
    return {(row["run"], row["gpus"]) for row in rows if row["what"] == what}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "options"),
    [
        (2, ["--overlap", "--guidance"]),
        pytest.param(4, ["--complete"], marks=pytest.mark.rehearsal),
    ],
)
def test_rehearsal(tmp_path, processes, options):
    in_processes(_rehearse, processes, tmp_path, options, processes, group=False)
    (file,) = tmp_path.iterdir()
    complete = "--complete" in options
    assert file.name == f"several_{MODEL}{'_complete' * complete}_{processes}.json"
    rows = json.loads(file.read_text())["rows"]
    assert not any("failed" in row for row in rows)
    shared = [2] if processes == 2 else [2, 4]  # fewer than all of them are two groups
    forwards = {(FORWARD, gpus) for gpus in (1, *shared)}
    parts = {(WHOLE, 1), *((run, gpus) for run in (OWN, EXCHANGE, SENT, SHARED) for gpus in shared)}
    if not complete:
        forwards |= {(OVERLAP, 2)}
        parts |= {(OVERLAPPING, 2)}
        steps = {(STEP, 1), (STEP, 2), (f"{STEP}, {HALVES}", 2)}
        assert _runs(rows, f"time of {STEP}") == steps
    assert _runs(rows, "time of one forward") == forwards
    assert _runs(rows, "attention of one block") == parts
    compared = {row["gpus"] for row in rows if "relative_error" in row}
    assert compared == set(shared)
    assert SHARED in table(rows)
    picture = draw([file], tmp_path)
    assert picture.stat().st_size > 5_000


def test_one_process_shares_nothing(tmp_path):
    in_processes(_alone, 1, tmp_path, group=False)


def _alone(rank: int, folder: Path) -> None:
    result = CliRunner().invoke(several.app, ["--tiny", "--output", str(folder)])
    assert "--nproc-per-node 2 or more" in str(result.exception)
    assert not list(folder.iterdir())
