"""The whole benchmark, tiny, on one and two processes."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from benchmarks.film.catalogue import SPARSITIES, Catalogue
from benchmarks.film.coverage import keys_for
from benchmarks.film.data import Shot
from benchmarks.film.evaluate import TIMES, compare, make_cases, summary
from benchmarks.film.pieces import load_pieces
from benchmarks.film.report import Report
from benchmarks.film.scene import TINY, TINY_LONGER
from helpers.film_clips import write_autoencoder, write_clip

ROOT = Path(__file__).parents[2]


def run(processes, folder, *options, name="seed_1"):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes)]
    command = ["-m", "benchmarks.film", "--dry", "--data", folder, "--output", folder / "out"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for variable in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(variable, None)
    words = [*launcher, *command, "--hold-out", "2", "--shots", "2", *options]
    subprocess.run([str(w) for w in words], cwd=ROOT, env=environment, check=True, timeout=300)
    return json.loads((folder / "out" / f"{name}.json").read_text())


@pytest.fixture
def folder(tmp_path):
    write_clip(tmp_path / "clip.avi")
    write_autoencoder(tmp_path)
    return tmp_path


@pytest.mark.rehearsal
def test_two_processes_measure_every_rule(folder):
    report = run(2, folder)
    names = [(e.name, e.sparsity) for e in Catalogue(TINY, torch.device("cpu")).entries()]
    assert [(r["rule"], r["sparsity"]) for r in report["rows"]] == names
    assert report["complete"]
    assert report["processes"] == 2
    assert len(report["cases"]) == 2 * len(TIMES)
    for rule in report["rows"]:
        assert len(rule["velocity"]["cases"]) == len(report["cases"])
        assert all(
            math.isfinite(x) for m in ("velocity", "loss", "flicker") for x in rule[m]["cases"]
        )
        assert 0 < rule["density"] <= rule["density_with_pseudo_keys"] + 1e-9
    assert report["rows"][0]["velocity"]["mean"] < 1e-4  # everything kept
    assert report["rows"][1]["velocity"]["mean"] > report["rows"][0]["velocity"]["mean"]
    assert {r["sparsity"] for r in report["rows"][1:]} == set(SPARSITIES)
    assert cv2.imread(str(folder / "out" / "seed_1.png")).shape[1] == 4 * 16 * TINY.grid[2]
    assert {path.name for path in (folder / "out").iterdir()} == {"seed_1.json", "seed_1.png"}
    assert report["name"] == "seed_1"
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m benchmarks.film --dry")
    assert report["versions"]["torch"] == torch.__version__


@pytest.mark.rehearsal
def test_a_run_that_ends_early_goes_on_from_its_weights(folder):
    weights = folder / "weights"
    early = run(1, folder, "--evaluation", "0", "--save-weights", weights)
    assert early["rows"] == []
    assert not early["complete"]
    cut = folder / "out" / "seed_1.json"
    early["rows"] = [{"rule": "everything kept", "sparsity": 0.0, "mark": 1}]
    cut.write_text(json.dumps(early))
    later = run(1, folder, "--load-weights", weights)
    assert later["complete"]
    assert later["rows"][0] == early["rows"][0]
    assert len(later["rows"]) == len(list(Catalogue(TINY, torch.device("cpu")).entries()))
    assert later["training"] == early["training"]
    assert later["command"].startswith("python -m benchmarks.film --dry")


@pytest.mark.rehearsal
def test_weights_are_tuned_on_longer_clips(folder):
    weights = folder / "weights"
    run(2, folder, "--evaluation", "0", "--save-weights", weights)
    before = load_pieces(weights)[0]
    tuned = folder / "tuned"
    words = ["--scene", "longer", "--load-weights", weights, "--tune", "1", "--clips", "2"]
    report = run(2, folder, *words, "--save-weights", tuned, name="longer_1")
    entries = list(Catalogue(TINY_LONGER, torch.device("cpu")).entries())
    assert [(r["rule"], r["sparsity"]) for r in report["rows"]] == [
        (e.name, e.sparsity) for e in entries
    ]
    assert report["complete"]
    assert report["grid"] == [9, 4, 6]
    assert [entry["stage"] for entry in report["training"]] == ["coarse", "full", "tuned"]
    # shots of 9, 12, 7, 10 and 8 frames, the second and the fourth held out
    assert report["sequences"] == {
        "train": {"shots": 1, "sequences": 1},
        "held_out": {"shots": 2, "sequences": 4 + 2},
    }
    assert report["rows"][0]["velocity"]["mean"] < 1e-4  # everything kept
    assert report["rows"][1]["velocity"]["mean"] > report["rows"][0]["velocity"]["mean"]
    after, facts = load_pieces(tuned)
    assert facts["scene"] == "longer"
    assert any(not torch.equal(after[name], before[name]) for name in before)


def report_of(folder, **facts):
    report = Report(folder, "seed_1", {"seed": 1, "cases": [[0, 4, 0.9]], **facts}, "a note")
    report.write()
    return report


def test_other_cases_are_not_gone_on_with(tmp_path):
    early = report_of(tmp_path, training=[1])
    early.rows = [{"rule": "a"}]
    early.write()
    later = Report(tmp_path, "seed_1", {"seed": 1, "cases": [[0, 4, 0.9]], "training": []}, "b")
    later.go_on()
    assert (later.rows, later.note, later.facts["training"]) == (early.rows, "a note", [1])
    for facts in ({"seed": 2}, {"cases": [[0, 4, 0.6]]}):
        other = Report(tmp_path, "seed_1", later.facts | facts, "b")
        other.go_on()
        assert other.rows == []


def test_digits_of_a_file(tmp_path):
    values = {"small": 1.23456789e-7, "large": 123.456789012, "cases": [0.123457, 4.553421], "n": 3}
    path = report_of(tmp_path, share=values).write()
    assert json.loads(path.read_text())["share"] == values | {
        "small": 1.23457e-7,
        "large": 123.456789,
    }


def test_cases_are_crossed():
    held = [Shot(100 * i, 100 * i + 21) for i in range(9)]
    cases = make_cases(held, 13, 3)
    assert [(c.shot, c.t) for c in cases] == [(i, t) for i in (0, 3, 6) for t in TIMES]
    assert [c.start for c in cases[::3]] == [4, 304, 604]


def test_clips_of_a_shot_share_no_frame():
    held = [Shot(0, 40), Shot(50, 60), Shot(100, 139)]
    cases = make_cases(held, 13, 8, clips=2)
    assert [(c.shot, c.start) for c in cases[::3]] == [(0, 3), (0, 23), (2, 103), (2, 122)]
    with pytest.raises(ValueError, match="no held-out shot has 41 frames"):
        make_cases(held, 41, 8)


def test_measures_by_hand():
    dense = torch.zeros(3, 1, 1, 1)
    dense[1] = 2.0
    dense[2] = 1.0
    sparse = dense.clone()
    sparse[1] = 1.0
    velocity, loss, flicker = compare(sparse, 1.5, dense, 1.0)
    assert velocity == pytest.approx(1 / math.sqrt(5))
    assert loss == pytest.approx(0.5)
    assert flicker == pytest.approx(math.sqrt(2 / 5))  # steps 1, 0 instead of 2, -1


def test_standard_errors_by_hand():
    found = summary([1.0, 3.0, 2.0, 6.0], [0, 0, 1, 1])
    assert found["mean"] == 3.0
    assert found["stderr"] == pytest.approx(math.sqrt(14 / 3 / 4))
    assert found["stderr_of_shots"] == pytest.approx(1.0)


def test_keys_for_a_mass():
    weights = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.96, 0.02, 0.01, 0.01], [0.25] * 4])
    assert keys_for(weights, 0.95).tolist() == [1.0, 0.25, 1.0]
    assert keys_for(weights, 0.7).tolist() == [0.5, 0.25, 0.75]
