"""mp4 files, read back with PyAV."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.video import save_video, side_by_side, to_uint8

av = pytest.importorskip("av")


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    clip = np.full((frames, height, width, 3), 40, dtype=np.uint8)
    for index in range(frames):
        clip[index, 8:24, index : index + 16] = (220, 120, 60)
    return clip


def read(path) -> tuple[np.ndarray, float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
        assert stream.codec_context.pix_fmt == "yuv420p"
        return np.stack(pixels), float(stream.average_rate)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (63, 97), (64, 97)])
def test_round_trip(tmp_path, height, width):
    clip = moving_square(9, height, width)
    path = save_video(clip, tmp_path / "new" / "clip.mp4", fps=8)
    pixels, fps = read(path)
    assert fps == 8
    assert pixels.shape == (9, height + height % 2, width + width % 2, 3)
    # Lossy: colour is stored at half resolution, so edges are off and areas are not.
    error = np.abs(pixels[:, :height, :width].astype(int) - clip)
    assert np.median(error) <= 4
    assert error.mean() < 6
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


def test_all_forms_of_diffusers_frames():
    clip = moving_square(2, 32, 32)
    as_float = clip.astype(np.float32) / 255
    tensor = torch.from_numpy(as_float.transpose(0, 3, 1, 2).copy())
    images = [Image.fromarray(frame) for frame in clip]
    for frames in (clip, as_float, tensor, images, list(as_float)):
        np.testing.assert_array_equal(to_uint8(frames), clip)


def test_side_by_side():
    left, right = moving_square(3, 32, 40), 255 - moving_square(3, 32, 40)
    both = side_by_side(left, right, gap=2)
    assert both.shape == (3, 32, 82, 3)
    np.testing.assert_array_equal(both[:, :, :40], left)
    np.testing.assert_array_equal(both[:, :, 42:], right)
    with pytest.raises(InvalidInputError, match="do not fit side by side"):
        side_by_side(left, right[:, :16])


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([], "no frames"),
        (np.zeros((1, 9, 8, 8, 3)), r"shape \[1, 9, 8, 8, 3\].*output.frames\[0\]"),
        (np.full((2, 8, 8, 3), np.nan), "not finite"),
    ],
)
def test_bad_frames(tmp_path, frames, words):
    with pytest.raises(InvalidInputError, match=words):
        save_video(frames, tmp_path / "clip.mp4", fps=8)
    assert not list(tmp_path.iterdir())


def test_bad_path_and_rate(tmp_path):
    clip = moving_square(2, 32, 32)
    with pytest.raises(InvalidInputError, match="end in .mp4"):
        save_video(clip, tmp_path / "clip.gif", fps=8)
    with pytest.raises(InvalidInputError, match="fps is 0"):
        save_video(clip, tmp_path / "clip.mp4", fps=0)
