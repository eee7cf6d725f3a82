"""Tables of the documents that people write: every figure is one of benchmarks/results."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results"


def rows_of(name: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]


def table(document: str, first: str) -> dict[str, list[str]]:
    """The rows of the table whose head begins so, by their first cells; no bold, no code."""
    lines = (ROOT / "docs" / document).read_text(encoding="utf-8").splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith(first))
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip(" `*") for cell in line.strip("|").split("|"))
        found[name] = cells
    return found


def shown(cell: str) -> tuple[float, float]:
    """A cell's figure and half a unit of its last digit; rounded values may lie either side."""
    text = re.match(r"\+?(-?[\d.]+)", cell).group(1)
    digits = len(text.partition(".")[2])
    return float(text), 0.5 * 10.0**-digits + 1e-9


def agrees(cell: str, value: float) -> None:
    figure, half = shown(cell)
    assert abs(figure - value) <= half, (cell, value)


@pytest.mark.parametrize(("column", "gpus"), [(0, 2), (2, 4)])
def test_several_gpus(column, gpus):
    said = table("parallel.md", "| 720p | 2 GPUs |")
    names = {"HunyuanVideo": "hunyuanvideo", "Wan 2.1 14B": "wan2.1-14b"}
    assert len(said) == 8
    for row, cells in said.items():
        name, _, what = row.partition(", ")
        rows = rows_of(f"several_{names[name]}_{gpus}")
        run = what.removeprefix("a ").partition(",")[0]
        agrees(cells[column], gain(rows, gpus, run))


def gain(rows: list[dict[str, Any]], gpus: int, run: str) -> float:
    """How often faster so many GPUs are at s = .8; of memory, the share of one GPU's."""
    chosen = [r for r in rows if r.get("gpus", gpus) == gpus and r.get("sparsity", 0.8) == 0.8]
    if run == "peak memory less weights":
        (value,) = (r["share"] for r in chosen if "share" in r)
    else:
        (value,) = (r["times"] for r in chosen if r["what"] == "speed-up" and r["run"] == run)
    return value


def test_engines_on_several_gpus():
    said = table("parallel.md", "| by engines, 720p | 2 GPUs |")
    names = {"HunyuanVideo": "hunyuanvideo", "Wan 2.1 14B": "wan2.1-14b"}
    assert len(said) == 8
    for row, cells in said.items():
        name, _, what = row.partition(", ")
        for column, gpus in ((0, 2), (2, 4)):
            file = f"parallel_engine_{names[name]}_{gpus}"
            if cells[column] == "not run":
                assert not (RESULTS / f"{file}.json").exists()
                continue
            agrees(cells[column], engine_figure(rows_of(file), what))


def engine_figure(rows: list[dict[str, Any]], what: str) -> float:
    if what.startswith("workspace"):
        gib = {r["run"]: r["gib"] for r in rows if r["what"] == "workspace"}
        return gib["all, captured"] / gib["one, captured"]
    wanted = {"run": "speed-up", "sparsity": 0.8}
    if what.startswith("a forward"):
        wanted = {"what": "speed-up", "run": "captured", "sparsity": 0.8}
    (row,) = (r for r in rows if wanted.items() <= r.items())
    return row["times_without_exchange" if what.endswith("with planning") else "times"]


def test_peers():
    """TFLOP/s of dense attention, and the error of 8 bits, by shape."""
    said = table("kernels.md", "| TFLOP/s and error of random normal data |")
    names = {
        "cuDNN, bfloat16": "cudnn",
        "ours, bfloat16": "16bit",
        "FlashAttention-3, bfloat16": "fa3",
        "ours, 8 bits": "8bit",
        "FlashAttention-3, FP8": "fa3-fp8",
        "SageAttention 2": "sage2",
    }
    assert list(said) == list(names)
    found = {
        (r["precision"], r["shape"]): r for r in rows_of("precision_peers") if r["sparsity"] == 0
    }
    shapes = ("cogvideox-5b", "hunyuanvideo-720p", "wan2.1-14b-720p")
    for name, cells in said.items():
        for shape, cell in zip(shapes, cells, strict=True):
            rate, *error = cell.split(", ")
            agrees(rate, found[names[name], shape]["tflops"])
            for value in error:
                agrees(value, found[names[name], shape]["relative_error"])


def film(sparsity: str) -> dict[str, list[str]]:
    """A table of docs/film.md, which a generator writes."""
    text = (ROOT / "docs/film.md").read_text(encoding="utf-8")
    part = text.partition(f"### Every rule, s = {sparsity}\n")[2].partition("\n### ")[0]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return {cells[0].strip(): [c.strip() for c in cells[1:]] for cells in rows[2:]}


PIECEWISE = "long boxes, sub, means"
FILM_RULES = {
    "piecewise": PIECEWISE,
    "rainfusion_two_way": "RainFusion, larger recall",
    "rainfusion2": "RainFusion2",
    "rainfusion": "RainFusion",
}


def same(cell: str, generated: str) -> None:
    """Both are rounded already: as the generated one, or to fewer digits."""
    agrees(cell.strip("+ %"), float(generated.split()[0]))


def test_presets():
    speed = {
        (r["shape"], r["sparsity"]): r["times_cudnn"]
        for r in rows_of("methods")
        if r["method"] == "piecewise"
    }
    shapes = ("hunyuanvideo-720p", "wan2.1-14b-720p", "opensoraplan-720p", "cogvideox-5b")
    said = table("fidelity.md", "| preset | sparsity | error |")
    assert list(said) == ["quality", "balanced", "fast"]
    for sparsity, error, loss, *times in said.values():
        found = film(sparsity)[PIECEWISE]
        same(error, found[0])
        same(loss, found[3])
        for shape, cell in zip(shapes, times, strict=True):
            agrees(cell, speed[shape, float(sparsity)])


def test_methods():
    for document, first in (
        ("fidelity.md", "| method | error | loss | flicker |"),
        ("usage.md", "| method | error, s = 0.8 |"),
    ):
        said = table(document, first)
        assert set(said) == set(FILM_RULES)
        for name, cells in said.items():
            found = film("0.8")[FILM_RULES[name]]
            same(cells[0], found[0])
            same(cells[1], found[3])
            if document == "fidelity.md":
                same(cells[2], found[4])
            else:
                found = film("0.9")[FILM_RULES[name]]
                same(cells[2], found[0])
                same(cells[3], found[3])


def test_videos():
    psnr = {
        (r["task"], r["steps"], r["rule"]): statistics.fmean(r["psnr"])
        for r in rows_of("fidelity/videos_4")
        if r["sparsity"] == 0.8
    }
    tasks = [("restore, film", 18), ("restore, clips", 18)]
    tasks += [("generate", steps) for steps in (30, 8, 4)]
    vmaf = {(r["task"], r["rule"]): statistics.fmean(r["vmaf"]) for r in rows_of("fidelity/vmaf")}
    said = table("fidelity.md", "| method | film, restored |")
    assert set(said) == {"piecewise", "rainfusion2", "rainfusion"}
    for rule, cells in said.items():
        for task, cell in zip(tasks, cells[:5], strict=True):
            agrees(cell, psnr[(*task, rule)])
        for task, cell in zip(("restore, film", "restore, clips"), cells[5:], strict=True):
            assert bool(cell) == ((task, rule) in vmaf)
            if cell:
                agrees(cell, vmaf[task, rule])


def test_dense_steps_at_a_shift():
    said = table("fidelity.md", "| computed densely above |")
    rows = {f"{row['dense_above']:g}": row for row in rows_of("fidelity/schedules_6")}
    assert [name.replace("never", "1") for name in said] == list(rows)
    for name, (steps, density, loss, psnr) in said.items():
        row = rows[name.replace("never", "1")]
        agrees(steps, row["dense_steps"])
        agrees(density, row["density_of_all_steps"])
        agrees(loss, 100 * statistics.mean(row["loss_rise"]))
        error = statistics.stdev(row["loss_rise"]) / len(row["loss_rise"]) ** 0.5
        agrees(loss.partition("± ")[2], 100 * error)
        agrees(psnr, statistics.mean(row["psnr"]))


def test_errors_on_captured_heads():
    said = table("kernels.md", "| heads | ours | before | SageAttention 2 |")
    places = {
        "layer 0, three": ("a", "layer0"),
        "layer 0, six others": ("b", "layer0"),
        "layer 4, three": ("a", "layer4"),
    }
    assert list(said) == list(places)
    for name, cells in said.items():
        file, layer = places[name]
        for cell, (when, precision) in zip(
            cells, (("after", "8bit"), ("before", "8bit"), ("after", "sage2")), strict=True
        ):
            (row,) = (
                r
                for r in rows_of(f"captured/{when}_{file}")
                if (r["layer"], r["precision"]) == (layer, precision)
            )
            agrees(cell, row["relative_error_mean"])


def test_errors_on_captured_layers():
    text = " ".join((ROOT / "docs/kernels.md").read_text(encoding="utf-8").split())
    record = json.loads((RESULTS / "fidelity/bits_7.json").read_text(encoding="utf-8"))
    of = {
        name: [
            f"{r['relative_error_mean']:.4f}"[1:]
            for r in record["attention"]
            if r["precision"] == name
        ]
        for name in ("8bit", "sage2", "fa3-fp8")
    }
    ours, sage = (f"{a}, {b} and {c}" for a, b, c in (of["8bit"], of["sage2"]))
    assert f"three layers had {ours}, SageAttention 2 {sage}," in text
    low, high = (f"{float(f(of['fa3-fp8'])):.3f}"[1:] for f in (min, max))
    assert f"FlashAttention-3 in FP8 {low} to {high} " in text
    lost, by_sage = (
        " and ".join(f"{record['shares'][x][f'dense, {name}']:.3f}"[1:] for x in ("film", "clips"))
        for name in ("8 bits", "sage2")
    )
    assert (
        f"8 bits alone lost {lost} of what `piecewise` at s = .8 does, on film and on real footage "
        f"(SageAttention 2 {by_sage})." in text
    )


def test_memory_of_one_of_several():
    said = table("parallel.md", "| peak memory less weights, of one GPU's | one of 2 |")
    names = {"HunyuanVideo": "hunyuanvideo", "Wan 2.1 14B": "wan2.1-14b"}
    assert list(said) == list(names)
    for name, cells in said.items():
        shares = {r["gpus"]: r["share"] for r in rows_of(f"share_memory_{names[name]}")}
        for cell, gpus in zip(cells, (2, 4, 8), strict=True):
            agrees(cell, shares[gpus])


def test_two_gpus_with_graphs_of_any_size():
    text = " ".join((ROOT / "docs/parallel.md").read_text(encoding="utf-8").split())
    hunyuan, wan = (
        rows_of(f"any_size/several_{name}_2") for name in ("hunyuanvideo_8-layers", "wan2.1-14b")
    )
    faster = [f"{gain(rows, 2, 'forward'):.2f}" for rows in (hunyuan, wan)]
    held = [f"{gain(rows, 2, 'peak memory less weights'):.2f}"[1:] for rows in (hunyuan, wan)]
    assert (
        f"two GPUs were {faster[0]} (HunyuanVideo, 8 blocks of each kind) and {faster[1]}" in text
    )
    assert f"times faster (Wan), and held {held[0]} and {held[1]}." in text


def test_overlap_and_guidance_of_two_gpus():
    text = " ".join((ROOT / "docs/parallel.md").read_text(encoding="utf-8").split())
    attention, steps, forwards = {}, {}, {}
    for name in (
        "several_hunyuanvideo_2",
        "several_wan2.1-14b_2",
        "high_priority/several_hunyuanvideo_2",
    ):
        rows = [row for row in rows_of(f"any_size/overlap/{name}") if "ms" in row]
        ms = {(row["what"], row["run"], row["gpus"], row["sparsity"]): row["ms"] for row in rows}
        attention[name] = [
            ms["attention of one block", f"own heads and exchange{overlap}", 2, 0.8]
            for overlap in ("", ", overlap")
        ]
        forwards[name] = [
            ms["time of one forward", run, 2, 0.8] for run in ("forward", "forward, overlap")
        ]
        steps = {(run, gpus): v for (what, run, gpus, _), v in ms.items() if "guidance" in what}
        if steps:
            one, both, halves = sorted(steps.values(), reverse=True)
    for without, overlap in forwards.values():
        assert overlap == pytest.approx(without, rel=0.01)
    (h, ho), (w, wo) = attention["several_hunyuanvideo_2"], attention["several_wan2.1-14b_2"]
    assert f"took {ho:.1f} ms of HunyuanVideo instead of {h:.1f}, and {wo:.1f} of Wan 14B" in text
    assert f"instead of {w:.1f}; forwards were as fast within 1 %" in text
    assert f"took {one:.0f} ms on one H200, {both:.0f} on two that share its tokens" in text
    assert f"and {halves:.0f} on two of which each computes a half" in text
    for ratio in re.search(r"a half: ([\d.]+) and ([\d.]+) times faster", text).groups():
        assert any(abs(float(ratio) - one / ms) <= 0.005 + 1e-9 for ms in (both, halves))
