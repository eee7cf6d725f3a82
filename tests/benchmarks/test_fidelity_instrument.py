"""Tables of the instrument by hand, and the document held to their files."""

import json

import pytest

from benchmarks.fidelity.instrument import (
    SECTIONS,
    block_times,
    fixed,
    read_records,
    sections,
)
from benchmarks.fidelity.tables import fill
from benchmarks.update_docs import ROOT

HEAD = {
    "device": "a card",
    "date": "2026-01-02",
    "command": "python x",
    "note": "a note",
    "versions": {"torch": "2"},
}
KEPT, FLICKER = ["0.100 ± 0.000"], ["0.100 ± 0.000"]
CASES = [[shot, 0, t] for shot in (0, 1) for t in (0.9, 0.3)]


def measured(source, rule, values, density=0.3, sparsity=0.8, tiles=0.31):
    cases = {"cases": values}
    return {
        "source": source,
        "sparsity": sparsity,
        "own_sparsity": 0.78,
        "origin": "package",
        "rule": rule,
        "velocity": cases,
        "loss": cases,
        "flicker": cases,
        "density_with_pseudo_keys": density,
        "tiles": tiles,
    }


def fixed_record(**changes):
    rows = [
        measured(source, rule, [scale * factor * x for x in (1.0, 3.0, 2.0, 2.0)])
        for source, scale in (("film", 0.1), ("clips", 0.2))
        for rule, factor in (("piecewise", 0.5), ("rainfusion2", 1.0))
    ]
    record = {"cases": {"film": CASES, "clips": CASES}, "complete": True, "rows": rows}
    return {**HEAD, **record, **changes}


def explored_record():
    """Errors fall by half where the tiles double, of piecewise; the other rule's are .8 at 1.5."""
    rows = [
        measured("film", rule, [error], sparsity=s, tiles=tiles)
        for rule, s, tiles, error in (
            ("piecewise", 0.9, 0.2, 0.4),
            ("piecewise", 0.8, 0.4, 0.2),
            ("another", 0.9, 0.2 * 2**0.5, 0.3),
            ("another", 0.8, 0.5, 0.1),
        )
    ]
    return {**HEAD, "cases": {"film": [[7, 0, 0.9]]}, "complete": True, "rows": rows}


def scheduled(shift, limit):
    row = video("piecewise", 0.8, [30.0, 34.0], latents_error=[0.1, 0.3], loss_rise=[0.01, 0.03])
    return {**row, "shift": shift, "dense_above": limit, "density_of_all_steps": 0.4}


def video(rule, sparsity, psnr, **more):
    values = {"psnr": psnr, "ssim": [0.9] * len(psnr), "flicker": [0.1] * len(psnr)}
    row = {"task": "generate", "steps": 8, "dense_steps": 1, "rule": rule, "sparsity": sparsity}
    return {**row, **values, **more}


def cached(s, cache, time, psnr, loss):
    row = video("dense" if s == 0 else "piecewise", s, psnr)
    return {
        **row,
        "cache": cache,
        "reuse": "output",
        "threshold": time,
        "time": time,
        "loss": loss,
        "latents_error": [0.1, 0.1],
        "ran": [[0, 7]],
    }


def bits_record():
    measured = {"mean": 0.01, "stderr": 0.001, "cases": [0.01, 0.01]}
    whole = {"velocity": measured, "loss": measured, "flicker": measured | {"stderr": None}}
    rows = [{"source": "film", "rule": rule, "sparsity": 0.0, **whole} for rule in ("a", "b")]
    rows.append({"source": "film", "rule": "c", "not_run": "why"})
    layer = {"layer": "layer0", "precision": "8bit"}
    layer |= {"relative_error_mean": 0.03, "relative_error_worst": 0.04}
    shares = {"film": {"a": 1.0, "b": 0.5}}
    return {**HEAD, "rows": rows, "shares": shares, "attention": [layer]}


@pytest.fixture
def records():
    sparse = {"density": 0.31, "tiles": 0.33}
    cost = {"step_ms": {"0": 10.0, "0.8": 4.5}, "step_ms_from": "this model here", "complete": True}
    return {
        "fixed_3": fixed_record(),
        "explored_3": explored_record(),
        "schedules_3": {**HEAD, "complete": False, "rows": [scheduled(1.0, 0.9)]},
        "caching_3": {
            **HEAD,
            **cost,
            "rows": [
                cached(0.0, "none", 1.0, [60.0, 60.0], 2.0),
                cached(0.0, "easy", 0.62, [30.0, 32.0], 2.02),
                cached(0.0, "easy", 0.58, [29.0, 29.0], 2.04),
                cached(0.8, "none", 0.55, [33.0, 35.0], 2.03),
                cached(0.8, "mag", 0.27, [28.0, 30.0], 2.1),
            ],
        },
        "bits_3": bits_record(),
        "videos_3": {
            **HEAD,
            "rows": [
                video("dense, math", 0.0, [60.0, 62.0]),
                video("piecewise", 0.8, [30.0, 34.0], **sparse),
                video("rainfusion2", 0.8, [25.0, 27.0], **sparse),
            ],
        },
        "longer_fixed_3": fixed_record(),
        "longer_videos_3": {**HEAD, "rows": [video("rainfusion2", 0.8, [20.0, 22.0], **sparse)]},
        "vmaf": {
            **HEAD,
            "rows": [{"task": "restore, film", "rule": "a", "sparsity": 0.8, "vmaf": [90.0, 92.0]}],
        },
        "synthetic_a": {
            **HEAD,
            "profile": "a.csv.xz",
            "setting": {"grid": [3, 4, 5]},
            "shares": [0.1, 0.2],
            "groups": [[1, 0]],
            "rows": [
                {
                    "rule": "piecewise",
                    "sparsity": 0.8,
                    "error": 0.123456,
                    "stderr": 0.01,
                    "density": 0.25,
                    "tiles": 0.3,
                    "by_share": {"0.05": [None, 0], "1": [0.25, 2]},
                }
            ],
        },
        "demo": {
            **HEAD,
            "rows": [
                {
                    "rule": rule,
                    "blocks": "48 x 32",
                    "density": 0.3,
                    "seeds": 2,
                    "psnr_per_seed": psnr,
                    "ssim_per_seed": [0.8, 0.9],
                }
                for rule, psnr in (("windows", [24.0, 28.0]), ("rainfusion2", [20.0, 22.0]))
            ],
        },
    }


def test_every_section_says_what_its_files_say(records):
    texts = sections(records)
    assert list(texts) == list(SECTIONS)
    assert texts["film-longer-fixed"] == texts["film-fixed"].replace("fixed_3", "longer_fixed_3")
    assert all("a card" in text and "python x" in text for text in texts.values())
    # ratio .5 in every training and shot; shots of 1, 3 and 2, 2 have the same mean
    line = "| piecewise | package | 0.300 | 0.310 | 0.100 ± 0.000 | 0.500 ± 0.000 |"
    assert line in texts["film-fixed"]
    assert line.replace("0.100", "0.200") in texts["film-fixed"]
    line = "| another | 0.300 | 0.283 | 0.300 | 0.750 | 0.283 | 30.00 | 0.300 |"
    assert line in texts["film-explored"]  # one shot has no standard error
    assert "| another | 0.300 | 0.500 | 0.100 | 0.500 |  |" in texts["film-explored"]
    assert "explored_3, film, 1 shot, 1 cases, s = 0.9:" in texts["film-explored"]
    line = "| 1 | 0.9 | 1 of 8 | 0.8 | 0.400 | 2.00 ± 1.00 | 0.200 ± 0.100 | 32.0 ± 2.0 |"
    assert line in texts["film-schedules"] and "Time ended" in texts["film-schedules"]
    line = "| piecewise | 0.8 | 0.310 | 0.330 | 32.0 ± 2.0 | +6.0 ± 1.0 | 0.900 ± 0.000 |"
    assert line in texts["film-videos"]
    assert "| dense, math |  | 1.000 | 1.000 | 61.0 ± 1.0 |  |" in texts["film-videos"]
    assert "| b | 0 | 0.0100 ± 0.0010 | 0.500 | 1.00 ± 0.10 | 0.0100 |" in texts["film-bits"]
    assert "| layer0 | 8bit | 0.03 | 0.04 |" in texts["film-bits"]
    assert "| c |" not in texts["film-bits"]
    assert "| restore, film | a | 0.8 | 2 | 91.0 ± 1.0 |" in texts["film-vmaf"]
    assert "| piecewise | 0.123 ± 0.010 |" in texts["synthetic"]
    assert "| piecewise | 0.250 |  | 0.250 | 0.300 |" in texts["synthetic"]
    assert "| windows | 48 x 32 | 0.300 | 26.0 ± 2.0 | +5.0 ± 1.0 |" in texts["demo-windows"]


def test_files_without_all_rules_are_refused():
    with pytest.raises(SystemExit, match=r"fixed_3\.json lacks rules"):
        fixed({"fixed_3": fixed_record(complete=False)})


def test_document_has_a_section_for_every_file(records, tmp_path):
    (tmp_path / "fidelity").mkdir()
    for name in ("fixed_3", "demo"):
        (tmp_path / "fidelity" / f"{name}.json").write_text(json.dumps(records[name]))
    found = sections(read_records(tmp_path / "fidelity"))
    assert found.keys() == {"film-fixed", "demo-windows"}
    text = (ROOT / "docs/fidelity-tables.md").read_text(encoding="utf-8")
    for name in SECTIONS:
        assert text.count(f"<!-- {name}: begin -->") in (0, 1)
    bare = "\n".join(line for line in text.split("\n") if not line.startswith("<!-- film-"))
    bare = "\n".join(line for line in bare.split("\n") if not line.startswith("<!-- demo-"))
    with pytest.raises(SystemExit, match="film-fixed: begin"):
        fill(bare, found)
    marks = "".join(
        f"<!-- {name}: begin -->\n<!-- {name}: end -->\n" for name in ("film-fixed", "demo-windows")
    )
    filled = fill(f"{bare}\n{marks}", found)
    assert "| windows | 48 x 32 | 0.300 |" in filled
    assert fill(filled, found) == filled


def test_caches_beside_what_they_cost(records):
    text = sections(records, {0.0: 10.0, 0.8: 4.0})["film-caching"]
    lines = [line for line in text.splitlines() if line.startswith("| 0")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells == [  # of 8 steps the first, which is dense, and the last ran
        ["0", "none", "", "2.0", "1.00", "0.25", "+0.00", "", "", ""],
        ["0", "easy", "0.62", "2.0", "0.62", "0.25", "+1.00", *KEPT, "31.0 ± 1.0", *FLICKER],
        ["0", "easy", "0.58", "2.0", "0.58", "0.25", "+2.00", *KEPT, "29.0 ± 0.0", *FLICKER],
        ["0.8", "none", "", "2.0", "0.55", "0.17", "+1.50", *KEPT, "34.0 ± 1.0", *FLICKER],
        ["0.8", "mag", "0.27", "2.0", "0.27", "0.17", "+5.00", *KEPT, "29.0 ± 1.0", *FLICKER],
    ]
    assert "s = 0: 10.0, s = 0.8: 4.5" in text and "this model here" in text
    assert "Time ended" not in text
    records["caching_3"]["complete"] = False
    assert "Time ended before the other rows" in sections(records)["film-caching"]


def test_times_of_blocks_are_those_of_compiled_forwards():
    what = {"what": "time of one forward"}
    rows = [
        {**what, "run": "eager, cuDNN attention", "sparsity": 0.0, "ms": 9.0},
        {**what, "run": "torch.compile, cuDNN attention", "sparsity": 0.0, "ms": 7.0},
        {"what": "export", "seconds": 1.0},
        {**what, "run": "torch.compile, RainFusion", "sparsity": 0.8, "ms": 3.0},
    ]
    assert block_times({"rows": rows}) == {0.0: 7.0, 0.8: 3.0}
    assert block_times(None) == {}
