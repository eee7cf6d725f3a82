"""The benchmark of memory on one of several GPUs, rehearsed with a tiny network."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from benchmarks.engine import share_memory
from tests.helpers.process_group import in_processes


def _rehearse(rank: int, folder: Path) -> None:
    import torch._dynamo

    torch._dynamo.config.disable = True  # Inductor takes minutes for it
    command = ["--tiny", "--model", "cogvideox-5b", "--gpus", "2", "--overlap"]
    result = CliRunner().invoke(share_memory.app, [*command, "--output", str(folder)])
    assert result.exit_code == 0, result.output


def test_rehearsal(tmp_path):
    in_processes(_rehearse, 1, tmp_path, group=False)
    rows = json.loads((tmp_path / "share_memory_cogvideox-5b.json").read_text())["rows"]
    runs = [(row["run"], row["gpus"]) for row in rows]
    assert runs == [("forward", 1), ("forward", 2), ("forward, overlap", 2)]


def test_one_gpu_shares_nothing(tmp_path):
    result = CliRunner().invoke(share_memory.app, ["--gpus", "1", "--output", str(tmp_path)])
    assert "--gpus 1 shares nothing" in str(result.exception)
    assert not list(tmp_path.iterdir())
