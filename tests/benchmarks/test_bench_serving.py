"""The benchmark of the service, at a small size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.rehearsal
def test_rehearsal(tmp_path):
    pytest.importorskip("ray")
    command = [sys.executable, "-m", "benchmarks.serving", "--jobs", "12", "--watchers", "4"]
    command += ["--seconds", "1", "--output", str(tmp_path), "--port", "8129"]
    subprocess.run(command, check=True, cwd=ROOT)
    jobs, watching = json.loads((tmp_path / "serving.json").read_text())["rows"]
    assert jobs["jobs"] == 12 and jobs["jobs_per_minute"] > 0
    assert 0 < watching["median_ms"] <= watching["p99_ms"]
