"""The instrument at equal densities, tiny; its files and its measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.fidelity.film import lossless
from benchmarks.fidelity.film.entries import TARGET
from benchmarks.fidelity.film.lossless import Pack, read_video
from benchmarks.fidelity.film.scoring import flicker, score
from benchmarks.fidelity.film.sheet import LABEL, read, sheet
from helpers.film_clips import write_autoencoder, write_clip
from rainfusion_trt.operator.settings import METHODS

ROOT = Path(__file__).parents[2]
needs_piecewise = pytest.mark.skipif(TARGET not in METHODS, reason="the operator has no piecewise")


def video(seed, frames=5, size=(64, 96)):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (frames, *size, 3), dtype=np.uint8)


def smooth(seed, frames=4, size=(96, 128)):
    grid = np.linspace(0, 6, size[0])[:, None] + np.linspace(0, 9, size[1])
    waves = [np.sin(grid + 0.4 * frame + seed)[..., None] for frame in range(frames)]
    return (128 + 100 * np.repeat(np.stack(waves), 3, -1)).astype(np.uint8)


def test_videos_come_back_as_they_were(tmp_path, monkeypatch):
    monkeypatch.setattr(lossless, "MOST", 150_000)  # a video of noise has 65 kB
    pack = Pack(tmp_path, "pack")
    videos = [video(seed, frames=3 + seed % 2) for seed in range(7)]
    for number, frames in enumerate(videos):
        pack.add(frames, item=number)
    index = json.loads(pack.finish().read_text())
    assert len({entry["file"] for entry in index}) > 1
    for entry, frames in zip(index, videos, strict=True):
        assert np.array_equal(read_video(tmp_path, entry), frames), entry
    with pytest.raises(OSError, match="ends before frame"):
        read_video(tmp_path, index[-1] | {"frames": 99})


def test_a_sheet_has_a_row_for_every_rule(tmp_path):
    pack = Pack(tmp_path, "lossless_1_0")
    shades = {("dense", None): 40, ("piecewise", 0.8): 120, ("rainfusion2", 0.8): 200}
    for item in (0, 1):
        for (rule, s), shade in shades.items():
            frames = np.full((13, 32, 64, 3), shade + 20 * item, np.uint8)
            pack.add(frames, task="restore, film", item=item, rule=rule, sparsity=s)
    pack.finish()
    picture = sheet(read(tmp_path, [1]))
    assert picture.shape == (3 * (LABEL + 160), 2 * 320, 3)
    middles = [int(picture[i * (LABEL + 160) + LABEL + 80, 100, 0]) for i in range(3)]
    assert middles == [60, 140, 220]
    with pytest.raises(SystemExit, match=r"no videos of items \[7\]"):
        read(tmp_path, [7])


def test_scores_by_hand():
    a = np.full((3, 16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[1] = 110
    a[2] = b[2] = 130
    psnr, ssim, changes = score(a, b)
    assert psnr == pytest.approx(10 * np.log10(255**2 / (100 / 3)))
    assert ssim < 1
    # steps 0 and 30 are 10 and 20: errors of 10 and 10 over a norm of 30
    assert changes == pytest.approx(np.sqrt(200) / 30)
    assert flicker(a[:1].repeat(2, 0), a[:1].repeat(2, 0)) == 0.0
    assert score(a, a)[0] == 100.0


def test_vmaf_falls_with_noise():
    pytest.importorskip("imageio_ffmpeg")
    from benchmarks.fidelity.film.vmaf import Ffmpeg

    ffmpeg = Ffmpeg.find()
    clean = smooth(0)
    noise = np.random.default_rng(0).normal(0, 25, clean.shape)
    noisy = np.clip(clean + noise, 0, 255).astype(np.uint8)
    same, worse = ffmpeg.vmaf(clean, clean), ffmpeg.vmaf(clean, noisy)
    assert same > 95
    assert worse < same - 10


def run(*words):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for variable in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        environment.pop(variable, None)
    command = [sys.executable, *map(str, words)]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=400)


@needs_piecewise
@pytest.mark.rehearsal
def test_the_whole_instrument(tmp_path):
    """Weights from a dry training; two rules on film and clips, then videos of both."""
    data, real, weights, out = (tmp_path / name for name in ("data", "real", "weights", "out"))
    for folder in (data, real):
        folder.mkdir()
        write_clip(folder / "clip.avi")
    write_autoencoder(data)
    split = ["--hold-out", "2", "--data", data, "--output", out]
    run("-m", "benchmarks.film", "--dry", "--evaluation", "0", "--save-weights", weights, *split)

    model = ["--cpu", "--weights", weights, "--clips", real, *split]
    rules = [TARGET, "long windows, means", "rainfusion2"]
    module = ["-m", "benchmarks.fidelity.film"]
    run(*module, "fixed", *model, "--shots", "2", "--sparsity", "0.8", "--only", *rules)
    fixed = json.loads((out / "fixed_1.json").read_text())
    assert fixed["complete"]
    rows = [(row["rule"], row["source"]) for row in fixed["rows"]]
    assert sorted(rows) == sorted((rule, s) for rule in rules for s in ("film", "clips"))
    for row in fixed["rows"]:
        assert len(row["velocity"]["cases"]) == len(fixed["cases"][row["source"]])

    words = ["--seeds", "2", "--steps", "3", "2", "--keep", "1"]
    run(*module, "videos", *model, *words, "--matched", out / "fixed_1.json", "--only", *rules)
    videos = json.loads((out / "videos_1.json").read_text())
    tasks = ["restore, film", "restore, clips", "generate", "generate"]
    found = list(dict.fromkeys((row["task"], row["steps"]) for row in videos["rows"]))
    assert found == list(zip(tasks, [2, 2, 3, 2], strict=True))
    for row in videos["rows"]:
        # noise of 1 and 2/3 in three steps, of 1 and 1/2 in two: the first of each is dense
        assert row["dense_steps"] == (1 if row["task"] == "generate" else 0)
        assert len(row["psnr"]) == len(row["flicker"]) == 2
        if row["rule"].startswith("dense"):
            assert min(row["psnr"]) > 60
    run(*module, "bits", *model, "--shots", "2")
    bits = json.loads((out / "bits_1.json").read_text())
    assert bits["complete"]
    for row in bits["rows"]:  # heads of 16
        assert ("velocity" in row) == ("8 bits" not in row["rule"])
        assert "velocity" in row or "head size 16" in row["not_run"]
        assert row.get("velocity", {"mean": 0.0})["mean"] < 1e-5  # one window holds all tokens
    words = ["--seeds", "2", "--steps", "6", "--sparsity", "0", "0.8", "--thresholds", "0", "9"]
    run(*module, "caching", *model, *words, "--shots", "2")
    cached = json.loads((out / "caching_1.json").read_text())
    assert cached["complete"] and set(cached["step_ms"]) == {"0", "0.8"}
    at = {(r["task"], r["cache"], r["threshold"], r["sparsity"]): r for r in cached["rows"]}
    assert len(at) == len(cached["rows"]) == 3 * 2 * 5
    for (task, cache, threshold, s), row in at.items():
        whole = at[task, "none", 0.0, s]
        assert all(ran[0] == 0 and ran[-1] == row["steps"] - 1 for ran in row["ran"])
        if cache != "none" and threshold == 9 and row["steps"] == 6:
            assert all(len(ran) < 6 for ran in row["ran"]) and row["density"] < whole["density"]
            assert row["time"] < whole["time"] and row["loss"] != whole["loss"]
        if cache != "none" and threshold == 0:
            assert row["ran"] == whole["ran"] and row["psnr"] == whole["psnr"]
    words = ["--seeds", "2", "--steps", "4", "--shifts", "1", "3", "--dense-above", "0.8", "1"]
    run(*module, "schedules", *model, *words, "--sparsity", "0.8", "--shots", "2")
    schedules = json.loads((out / "schedules_1.json").read_text())
    assert schedules["complete"]
    dense = {(row["shift"], row["dense_above"]): row["dense_steps"] for row in schedules["rows"]}
    # noise of 1, .75, .5, .25, and of 1, .9, .75, .5 at a shift of 3
    assert dense == {(1, 0.8): 1, (1, 1): 0, (3, 0.8): 2, (3, 1): 0}
    for row in schedules["rows"]:
        assert len(row["psnr"]) == 2 and len(row["loss_rise"]) == 2
        assert max(map(abs, row["loss_rise"])) < 1e-4  # one window holds all tokens
    index = json.loads((out / "lossless_1_0.json").read_text())
    assert {e["rule"] for e in index} == {"dense", TARGET, "rainfusion2"}
    assert read_video(out, index[-1]).shape == (5, 96, 128, 3)
