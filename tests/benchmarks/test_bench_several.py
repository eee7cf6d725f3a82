"""The benchmark of few layers on several GPUs, rehearsed with two processes and a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.engine import several
from benchmarks.engine.parallel_tables import several as table
from tests.helpers.process_group import in_processes


def _rehearse(rank: int, folder: Path, options: list[str]) -> None:
    import torch._dynamo

    torch._dynamo.config.disable = True  # Inductor takes minutes for it
    command = ["--tiny", "--rounds", "1", "--model", "cogvideox-5b", "--output", str(folder)]
    result = CliRunner().invoke(several.app, [*command, *options])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
@pytest.mark.parametrize("overlap", [False, True])
def test_rehearsal(tmp_path, overlap):
    in_processes(_rehearse, 2, tmp_path, ["--overlap"] * overlap, group=False)
    (file,) = tmp_path.iterdir()
    assert file.name == f"several_cogvideox-5b_2{'_overlap' * overlap}.json"
    written = json.loads(file.read_text())
    assert (several.OVERLAP in written["note"]) is overlap
    rows = written["rows"]
    assert not any("failed" in row for row in rows)
    assert {row["run"] for row in rows if row["what"] == "attention of one block"} == {
        several.WHOLE,
        several.OWN,
        several.EXCHANGE,
        several.SHARED,
    }
    assert several.SHARED in table(rows)
