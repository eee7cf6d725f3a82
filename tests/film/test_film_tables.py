"""docs/film.md holds what the result files say; pooling is done as its words say."""

import json
import math

import numpy as np
import pytest

from benchmarks.film import pooled, tables
from benchmarks.film.pooled import Trainings
from benchmarks.film.predicted import PREDICTED

CASES = [[shot, 100 * shot, t] for shot in range(3) for t in (0.9, 0.3)]
A = [[1.0, 3.0, 2.0, 2.0, 5.0, 1.0], [2.0, 2.0, 4.0, 2.0, 3.0, 3.0]]
B = [[2.0, 2.0, 8.0, 4.0, 6.0, 6.0], [4.0, 4.0, 4.0, 4.0, 8.0, 8.0]]


def record(a, b, **facts):
    rows = [
        {"rule": name, "sparsity": s, "tiles": tiles, "velocity": {"cases": [x * s for x in cases]}}
        for s, tiles in ((0.5, 0.8), (1.0, 0.2))
        for name, cases in (("a", a), ("b", b))
    ]
    return {"complete": True, "cases": CASES, "rows": rows, **facts}


@pytest.fixture
def trainings():
    return Trainings({"one": record(A[0], B[0]), "two": record(A[1], B[1])})


def write(folder, **records):
    for name, content in records.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def test_document_is_up_to_date():
    tables.main(check=True)


def test_document_out_of_date_is_refused(monkeypatch, tmp_path):
    text = tables.DOCUMENT.read_text(encoding="utf-8")
    path = tmp_path / "film.md"
    path.write_text(text.replace("| RainFusion2 |", "| RainFusion3 |"), encoding="utf-8")
    monkeypatch.setattr(tables, "DOCUMENT", path)
    with pytest.raises(SystemExit, match="film.md is out of date"):
        tables.main(check=True)
    tables.main(check=False)
    assert path.read_text(encoding="utf-8") == text


def test_every_rule_of_the_tables_was_measured():
    trainings = Trainings.read(tables.FILES)
    names = {name for _, _, *pair in tables.CHANGES for name in pair}
    names |= {*tables.MAIN, *tables.AT_WORK, *PREDICTED} - {"everything kept"}
    for s in tables.SPARSITIES:
        assert names <= set(trainings.rules(s))


def test_results_are_small_and_complete():
    for path in tables.FILES.glob("*.json"):
        assert path.stat().st_size < 250_000
        facts = json.loads(path.read_text(encoding="utf-8"))
        assert facts["name"] == path.stem == f"seed_{facts['seed']}"
        assert {"date", "command", "versions", "device", "note"} <= facts.keys()


def test_mean_and_errors_by_hand(trainings):
    found = trainings.mean("a", 1.0, "velocity")
    assert found.value == pytest.approx(30 / 12)
    assert found.trainings == pytest.approx((14 / 6, 16 / 6))
    assert found.spread == pytest.approx(2 / 6)
    shots = [2.0, 2.5, 3.0]  # means over two cases and two trainings
    assert found.stderr == pytest.approx(np.std(shots, ddof=1) / math.sqrt(3))


def test_ratio_is_of_the_same_training(trainings):
    found = trainings.ratio("a", "b", 1.0, "velocity")
    assert found.trainings == pytest.approx((14 / 28, 16 / 32))
    assert found.value == pytest.approx(0.5)
    assert trainings.ratio("a", "a", 1.0, "velocity").stderr == 0.0


def test_resampling_approaches_every_choice_of_shots(trainings):
    """All 27 ways to draw three of three shots, each with its probability."""
    a, b = (trainings.values(name, 1.0, "velocity") for name in "ab")
    picks = np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
    ratios = [(a[:, pick].mean(1) / b[:, pick].mean(1)).mean() for pick in picks]
    found = trainings.ratio("a", "b", 1.0, "velocity").stderr
    assert found == pytest.approx(np.std(ratios), rel=0.05)
    assert pooled._resamples(3).sum(1).tolist() == [3.0] * pooled.RESAMPLES


def test_work_is_interpolated_on_logarithms(trainings):
    low, high = (trainings.mean("a", s, "velocity").value for s in (0.5, 1.0))
    assert trainings.at_work("a", 0.4, "velocity") == pytest.approx(math.sqrt(low * high))
    assert trainings.at_work("a", 0.2, "velocity") == pytest.approx(high)
    assert trainings.at_work("a", 0.1, "velocity") is None
    assert trainings.at_work("a", 0.9, "velocity") is None


def test_shots_of_unequal_numbers_weigh_the_same():
    uneven = record(A[0], B[0], cases=[[0, 0, 0.9]] * 4 + [[1, 9, 0.9]] * 2)
    found = Trainings({"one": uneven}).mean("a", 1.0, "velocity")
    assert found.value == pytest.approx((8 / 4 + 6 / 2) / 2)


def test_rules_of_later_files_are_told_apart(trainings):
    both = dict(trainings.records)
    rows = [dict(row, rule="c") if row["rule"] == "b" else row for row in both["two"]["rows"]]
    both["two"] = both["two"] | {"rows": both["two"]["rows"] + rows[1::2]}
    later = Trainings(both)
    assert later.rules(1.0) == ["a", "b"]
    assert later.partial_rules(1.0) == ["c"]
    assert list(later.having("a", "c").records) == ["two"]
    assert later.having("c").ratio("c", "b", 1.0, "velocity").value == 1.0
    with pytest.raises(KeyError, match="not in every file"):
        later.mean("c", 1.0, "velocity")
    with pytest.raises(KeyError, match="no file has d"):
        later.having("d")


def test_trainings_must_match(tmp_path):
    with pytest.raises(SystemExit, match="no result file"):
        Trainings.read(tmp_path)
    write(tmp_path, one=record(A[0], B[0]), two=record(A[1], B[1]))
    assert list(Trainings.read(tmp_path).records) == ["one", "two"]
    write(tmp_path, two=record(A[1], B[1], cases=CASES[::-1]))
    with pytest.raises(SystemExit, match=r"two\.json has other cases"):
        Trainings.read(tmp_path)
    write(tmp_path, two=record(A[1], B[1], complete=False))
    with pytest.raises(SystemExit, match=r"two\.json lacks rules"):
        Trainings.read(tmp_path)
