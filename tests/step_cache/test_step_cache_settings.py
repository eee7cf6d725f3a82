"""What can be asked of a step cache, and the documented defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import RULES, CacheSettings, read_cache

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"cache": "fast"}, "cache='fast' is not one of off, easy, mag"),
        ({"cache": "easy", "threshold": -1}, "cache_threshold=-1: give a number from 0 on"),
        ({"cache": "easy", "threshold": float("nan")}, "cache_threshold=nan"),
        ({"cache": "easy", "threshold": "0.1"}, "cache_threshold='0.1'"),
        ({"cache": "off", "threshold": 0.1}, "cache_threshold=0.1 without a cache"),
        ({"threshold": 0.1}, "without a cache"),
        ({"cache": "mag"}, "cache='mag' needs calibrated ratios: .*calibrate-cache"),
    ],
)
def test_settings_that_cannot_be(arguments, said):
    with pytest.raises(InvalidInputError, match=said) as error:
        read_cache(**{"cache": None, "threshold": None, "ratios": None, **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "values", [{"first": 1.5}, {"last": -1}, {"max_skips": 0}, {"max_skips": 2.0}, {"reuse": "a"}]
)
def test_numbers_that_cannot_be(values):
    with pytest.raises(InvalidInputError, match=next(iter(values))):
        CacheSettings("easy", **values)


@pytest.mark.parametrize("cache", [5, True, ["easy"], {"rule": "easy"}])
def test_other_types(cache):
    with pytest.raises(InvalidInputError, match="is not one of off, easy, mag"):
        read_cache(cache, None, None)
    with pytest.raises(InvalidInputError, match="is not one of off, easy, mag"):
        CacheSettings(cache)
    with pytest.raises(InvalidInputError, match="give the file that"):
        MagnitudeRatios.read(cache)
    with pytest.raises(InvalidInputError, match="read the file with read_ratios"):
        CacheSettings("mag", ratios=cache)


def test_what_is_meant():
    usual = CacheSettings("easy")
    assert (usual.threshold, usual.first, usual.last, usual.max_skips) == (0.05, 0.1, 1, 3)
    assert read_cache(None, None, None) is None and read_cache("off", None, None, usual) is None
    assert read_cache(None, None, None, usual) is usual
    assert read_cache(None, 0.2, None, usual).threshold == 0.2
    known = MagnitudeRatios("fake", "Fake", (2.0, 1.0), None, (None, 1.0), reuse="output")
    mag = read_cache("mag", None, known, usual)
    with pytest.raises(InvalidInputError, match="are of the output, and reuse='residual'"):
        CacheSettings("mag", reuse="residual", ratios=known)
    assert (mag.rule, mag.threshold, mag.first) == ("mag", 0.02, 0.2)
    assert [usual.always(i, 8) for i in range(8)] == [True, *[False] * 6, True]
    assert [CacheSettings("easy", first=0.07).always(i, 100) for i in (6, 7)] == [True, False]


def document() -> str:
    return (ROOT / "docs" / "caching.md").read_text(encoding="utf-8")


def test_the_document_has_the_defaults():
    text = document()
    for name, usual in RULES.items():
        (row,) = re.findall(rf"^\| `{name}` \| (?!\d)(.*) \|$", text, re.MULTILINE)
        *_, threshold, always = row.split(" | ")
        assert threshold == f"{usual.threshold:g}"
        assert always == f"the first {100 * usual.first:g} %, the last step"


def test_the_document_has_the_measured_figures():
    rows = json.loads((ROOT / "benchmarks/results/demo_caching.json").read_text())["rows"]
    wanted = [
        (row["cache"], row["threshold"], len(row["skipped"]), row["relative_error_of_latents"])
        for row in rows
        if row["what"] == "threshold"
    ]
    lines = re.findall(
        r"^\| `(\w+)` \| ([\d.]+) \| (\d+) of 30 \| ([\d.]+) % \|$", document(), re.M
    )
    assert [(name, float(threshold), int(n)) for name, threshold, n, _ in lines] == [
        row[:3] for row in wanted
    ]
    assert [error for *_, error in lines] == [f"{100 * row[3]:.1f}" for row in wanted]
    words = " ".join(document().split())
    fixed = [r["relative_error_of_latents"] for r in rows if r["what"] == "fixed skips"]
    for output, residual in zip(fixed[::2], fixed[1::2], strict=True):
        assert f"{100 * output:.1f} % instead of {100 * residual:.1f} %" in words
