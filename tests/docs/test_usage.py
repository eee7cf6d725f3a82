"""Figures of usage.md, fidelity.md and caching.md are those of the studies; presets."""

from __future__ import annotations

import json
import re
import statistics

import diffusers
import numpy as np
import pytest

from rainfusion_trt.plugin.build import source_directory
from rainfusion_trt.presets import PRESETS
from rainfusion_trt.sigma_schedule import SigmaSchedule

DOCS = source_directory() / "docs"
# The rule of the film study that a method is.
RULES = {
    "piecewise": "long boxes, sub, means",
    "rainfusion_two_way": "RainFusion, larger recall",
    "rainfusion2": "RainFusion2",
    "rainfusion": "RainFusion",
}


def section(title: str, document: str = "usage.md") -> str:
    return (DOCS / document).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def cells(text: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]


def of_film(rule: str, sparsity: str) -> tuple[str, str, str]:
    """Error, rise of the loss and flicker, as docs/film.md has them."""
    table = (DOCS / "film.md").read_text().split(f"### Every rule, s = {sparsity}\n")[1]
    (row,) = re.findall(rf"^\| {re.escape(rule)} \|(.*)$", table.split("\n###")[0], re.MULTILINE)
    columns = [column.split("±")[0].strip() for column in row.split("|")]
    return columns[0], f"+{columns[3]} %", columns[4]


@pytest.mark.parametrize("method", RULES)
def test_figures_of_methods_are_the_film_studys(method):
    (row,) = [row for row in cells(section("Methods")) if row[0] == f"`{method}`"]
    assert row[1:5] == [*of_film(RULES[method], "0.8")[:2], *of_film(RULES[method], "0.9")[:2]]
    (row,) = [
        row
        for row in cells(section("What each method does to the picture", "fidelity.md"))
        if row[0] == f"`{method}`"
    ]
    assert row[1:4] == [*of_film(RULES[method], "0.8")]


SHAPES = ("hunyuanvideo-720p", "wan2.1-14b-720p", "opensoraplan-720p", "cogvideox-5b")


def times_faster(shape: str, method: str, sparsity: float) -> float:
    """Than cuDNN's dense attention, as the file of timings has it."""
    file = source_directory() / "benchmarks" / "results" / "methods.json"
    rows = json.loads(file.read_text())["rows"]
    ms = {(row["shape"], row["method"], row["sparsity"]): row["ms"] for row in rows}
    return ms[shape, "cudnn dense", 0.0] / ms[shape, method, sparsity]


def test_what_presets_cost_is_what_was_measured():
    found = cells(section("What to use", "fidelity.md"))
    wanted = []
    for name, preset in PRESETS.items():
        s = preset.schedule.peak
        times = [f"{times_faster(shape, preset.method, s):.1f}x" for shape in SHAPES]
        figures = of_film(RULES[preset.method], f"{s:g}")[:2]
        wanted.append([f"`{name}`", f"{s:g}", *figures, *times])
    assert found == wanted


def test_presets_are_those_of_the_table():
    rows = cells(section("Presets"))
    assert rows == [
        [
            f"`{name}`",
            f"`{p.method}`",
            f"{p.schedule.peak:g}",
            f"sigma > {p.schedule.dense_above:g}",
        ]
        for name, p in PRESETS.items()
    ]


def cogvideox(snr_shift_scale: float):
    return diffusers.CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        snr_shift_scale=snr_shift_scale,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
    )


def wan(shift: float):
    return diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift
    )


# As the released checkpoints configure them.
HUNYUAN = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
SCHEDULERS = {
    r"(\d+) for CogVideoX-5B": (cogvideox(1.0), {"num_inference_steps": 50}),
    r"(\d+) for CogVideoX-2B and": (cogvideox(3.0), {"num_inference_steps": 50}),
    r"(\d+) for CogVideoX-2B and Wan 480p": (wan(3.0), {"num_inference_steps": 50}),
    r"(\d+) for Wan 720p": (wan(5.0), {"num_inference_steps": 50}),
    r"(\d+) for HunyuanVideo": (HUNYUAN, {"sigmas": np.linspace(1, 0, 51)[:-1]}),
}


@pytest.mark.parametrize("words", SCHEDULERS)
def test_dense_steps_of_released_models(words):
    scheduler, arguments = SCHEDULERS[words]
    scheduler.set_timesteps(**arguments)
    planned = SigmaSchedule(0.8, dense_above=0.9).per_step(scheduler, 50)
    (said,) = re.findall(words, " ".join(section("Presets").split()))
    assert planned.count(0.0) == int(said)


@pytest.mark.parametrize(("shift", "steps"), [(5, 4), (5, 8), (8, 4), (8, 8)])
def test_dense_steps_of_few(shift, steps):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, steps + 1)[:-1])
    planned = SigmaSchedule(0.8, dense_above=0.9).per_step(scheduler, steps)
    words = " ".join(section("Presets").split()).split(f"shift of {shift}, ")[1]
    said = {int(of): int(dense) for dense, of in re.findall(r"(\d+) of (\d+)", words)[:2]}
    assert said[steps] == planned.count(0.0)


def of_instrument(name: str) -> dict:
    file = source_directory() / "benchmarks" / "results" / "fidelity" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8"))


def test_what_videos_keep_is_what_was_measured():
    rows, vmaf = of_instrument("videos_4")["rows"], of_instrument("vmaf")["rows"]
    tasks = [("restore, film", 18), ("restore, clips", 18), *(("generate", n) for n in (30, 8, 4))]
    for name, *found in cells(section("In videos", "fidelity.md")):
        rule = name.strip("`")
        wanted = []
        for task in tasks:
            (row,) = [r for r in rows if (r["task"], r["steps"]) == task and r["rule"] == rule]
            psnr = row["psnr"]
            stderr = statistics.stdev(psnr) / len(psnr) ** 0.5
            wanted.append(f"{statistics.fmean(psnr):.1f} ± {stderr:.1f}")
        for task, _ in tasks[:2]:
            known = [r["vmaf"] for r in vmaf if (r["task"], r["rule"]) == (task, rule)]
            wanted.append(f"{statistics.fmean(known[0]):.1f}" if known else "")
        assert found == wanted


def test_what_caches_cost_is_what_was_measured():
    rows = of_instrument("caching_4")["rows"]
    dense = [row for row in rows if row["sparsity"] == 0]
    (base,) = [row["loss"] for row in dense if row["cache"] == "none"]
    at = {(f"`{row['cache']}`", f"{row['threshold']:g}"): row for row in dense}
    found = [row for row in cells(section("Which", "caching.md")) if "of 50" in row[2]]
    assert len(found) == 6
    for cache, threshold, ran, *figures in found:
        row = at[cache, threshold]
        assert ran == f"{statistics.fmean(map(len, row['ran'])):.0f} of 50"
        assert figures == [
            f"{100 * (row['loss'] / base - 1):+.1f} %",
            f"{statistics.fmean(row['latents_error']):.3f}",
            f"{statistics.fmean(row['psnr']):.1f} dB",
        ]
