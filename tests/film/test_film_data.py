"""Clips, cuts, and the split by shots."""

import cv2
import numpy as np
import pytest
import torch

from benchmarks.film.autoencoder import load_autoencoder
from benchmarks.film.data import Shot, find_cuts, fit, load_film, read_clip, split_shots
from helpers.film_clips import COLOURS, LENGTHS, write_autoencoder, write_clip


def test_cuts_are_found_where_the_scene_changes(tmp_path):
    write_clip(tmp_path / "clip.avi")
    film = load_film(tmp_path, [(32, 48)])
    edges = np.cumsum([0, *LENGTHS])
    assert film.frames == edges[-1]
    assert film.shots == [Shot(int(a), int(b)) for a, b in zip(edges, edges[1:], strict=False)]
    assert film.pictures[0].shape == (film.frames, 32, 48, 3)


def test_colours_keep_their_order(tmp_path):
    write_clip(tmp_path / "clip.avi")
    picture = load_film(tmp_path, [(32, 48)]).pictures[0][0]
    blue, green, red = COLOURS[0]
    assert np.abs(picture.mean((0, 1)) - [red, green, blue]).max() < 25


def test_a_clip_begins_a_shot_and_shares_interleave(tmp_path):
    for name in ("a.avi", "b.avi"):
        write_clip(tmp_path / name)
    whole = load_film(tmp_path, [(32, 48)])
    assert sum(LENGTHS) in [shot.start for shot in whole.shots]
    assert [s.start for s in whole.shots[1:]] == [s.stop for s in whole.shots[:-1]]
    shares = [load_film(tmp_path, [(32, 48)], rank, 3) for rank in range(3)]
    for rank, share in enumerate(shares):
        assert share.shots == whole.shots
        assert np.array_equal(share.pictures[0], whole.pictures[0][rank::3])


def test_motion_is_no_cut():
    generator = np.random.default_rng(0)
    restless = generator.dirichlet(np.ones(512) * 0.1, size=30)  # every frame differs much
    assert find_cuts(restless) == []
    still = np.tile(restless[:1], (30, 1))
    still[12:] = restless[1]
    assert find_cuts(still) == [12]


def test_fast_clips_are_thinned(tmp_path):
    write_clip(tmp_path / "clip.avi", rate=24)
    assert len(list(read_clip(tmp_path / "clip.avi"))) == -(-sum(LENGTHS) // 3)


def test_the_middle_is_kept():
    frame = np.zeros((90, 160, 3), np.uint8)
    frame[:, 40:120] = 255
    fitted = fit(frame, (64, 48))
    assert fitted.shape == (64, 48, 3)
    assert fitted.min() == 255
    assert cv2.resize(frame, (48, 64)).min() == 0


@pytest.mark.parametrize("every", [2, 3, 7])
def test_no_shot_is_on_both_sides(every):
    shots = [Shot(20 * i, 20 * i + 10 + i % 11) for i in range(40)]
    training, held = split_shots(shots, 13, every)
    frames = [{f for s in side for f in range(s.start, s.stop)} for side in (training, held)]
    assert frames[0] and frames[1]
    assert not frames[0] & frames[1]
    assert all(len(shot) >= 13 for shot in training + held)
    assert len(training) + len(held) == sum(len(shot) >= 13 for shot in shots)
    assert len(held) == pytest.approx((len(training) + len(held)) / every, abs=1)


def test_too_few_shots_are_refused():
    with pytest.raises(ValueError, match="cannot be split"):
        split_shots([Shot(0, 20)], 13, 7)


def test_a_folder_without_clips_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no clip"):
        load_film(tmp_path, [(32, 48)])


def test_autoencoder_keeps_sizes(tmp_path):
    write_autoencoder(tmp_path)
    autoencoder = load_autoencoder(tmp_path, torch.device("cpu"))
    latents = autoencoder.encode(torch.rand(2, 3, 32, 48))
    assert latents.shape == (2, 32, 4, 6)
    pictures = autoencoder.decode(latents)
    assert pictures.shape == (2, 3, 32, 48)
    assert pictures.min() >= 0
    assert pictures.max() <= 1
