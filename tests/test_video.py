"""mp4 files, read back with PyAV."""

from __future__ import annotations

import errno
import struct
import sys
import tempfile
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from rainfusion_trt import video
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.video import check_target, load_video, save_video, side_by_side, to_uint8

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


def test_integers_images_and_tensors_are_grey_levels():
    clip = moving_square(2, 32, 40)
    tensor = torch.from_numpy(clip.copy())
    images = [Image.fromarray(frame) for frame in clip]
    floats = tensor.permute(0, 3, 1, 2) / 255
    for frames in (
        clip.astype(np.int64),
        clip.astype(np.uint16),
        tensor,
        tensor.long(),
        tensor.permute(0, 3, 1, 2),
        list(tensor.permute(0, 3, 1, 2)),
        [image.convert("RGBA") for image in images],
        (frame for frame in clip),
        floats.double(),
        list(floats),
        clip.astype(np.float64) / 255 + 1e-3,  # half a grey level of overshoot, rounded away
    ):
        np.testing.assert_array_equal(to_uint8(frames), clip)
    # bfloat16 has 8 bits: off by less than a level.
    assert np.abs(to_uint8(floats.bfloat16()).astype(int) - clip).max() <= 1
    grey = to_uint8([image.convert("L") for image in images])
    assert grey.shape == clip.shape and (grey[..., 0] == grey[..., 2]).all()


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
        (None, "the clip is None: give frames .the first process alone"),
        (np.full((2, 8, 8, 3), np.nan), "not finite"),
        (np.full((2, 8, 8, 3), np.inf), "not finite"),
        (torch.full((2, 3, 8, 8), float("nan")), "not finite"),
        (np.full((2, 8, 8, 3), 128.0), r"from 128 to 128.*\[0, 1\]: divide grey levels by 255"),
        (np.full((2, 8, 8, 3), -1.0, np.float32), "from -1 to -1"),
        (torch.full((2, 3, 8, 8), 255.0), "from 255 to 255"),
        (np.full((2, 8, 8, 3), 256), "integers from 256 to 256"),
        (np.full((2, 8, 8, 3), -1, np.int8), "integers from -1 to -1"),
        (np.zeros((2, 8, 8, 3), bool), "holds bool"),
        (np.zeros((2, 8, 8, 3), complex), "holds complex128"),
        ([np.zeros((8, 8, 3)), np.zeros((8, 9, 3))], "frames of one size"),
        ([Image.new("I;16", (8, 8))], "mode I;16"),
        ([Image.new("CMYK", (8, 8))], "mode CMYK"),
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
    for fps in (0, -1, 1001, 8.5, True):
        with pytest.raises(InvalidInputError, match=f"fps is {fps}"):
            save_video(clip, tmp_path / "clip.mp4", fps=fps)
    assert not list(tmp_path.iterdir())


# -- what may be overwritten -----------------------------------------------------------------------


def test_its_own_video_is_replaced(tmp_path):
    path = save_video(moving_square(2, 32, 32), tmp_path / "clip.mp4", fps=8)
    save_video(moving_square(5, 32, 32), path, fps=8)
    assert read(path)[0].shape[0] == 5
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def append(path):
    path.write_bytes(path.read_bytes() + b"x")


def remux(path):
    """As `ffmpeg -i clip.mp4 -c copy` does, metadata and all."""
    copy = path.with_name("copy.mp4")
    with av.open(str(path)) as source, av.open(str(copy), "w") as target:
        stream = source.streams.video[0]
        twin = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = twin
                target.mux(packet)
    copy.replace(path)


@pytest.mark.parametrize("change", [change_byte, append, remux, lambda path: path.write_bytes(b"")])
def test_a_video_that_is_not_as_it_was_written_is_kept(tmp_path, change):
    path = save_video(moving_square(2, 32, 32), tmp_path / "clip.mp4", fps=8)
    change(path)
    content = path.read_bytes()
    clip = moving_square(5, 32, 32)
    with pytest.raises(InvalidInputError, match=r"exists, and is not.*--overwrite"):
        save_video(clip, path, fps=8)
    assert path.read_bytes() == content
    save_video(clip, path, fps=8, overwrite=True)
    assert read(path)[0].shape[0] == 5


# -- targets ---------------------------------------------------------------------------------------


def test_targets_that_cannot_be_written(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "own.mp4").symlink_to(
        save_video(moving_square(2, 32, 32), tmp_path / "a.mp4", fps=8)
    )
    before = sorted(tmp_path.rglob("*"))
    for name, words in {
        "folder.mp4": "is a folder",
        "file/x.mp4": "file is not a folder",
        "dangling/x.mp4": "is a link to nothing",
        "own.mp4": "is a link: name the file itself",
        f"{'x' * 300}.mp4": "File name too long",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            check_target(tmp_path / name, overwrite=True)
    with pytest.raises(InvalidInputError, match="cannot be written"):
        check_target("/proc/x.mp4")  # also root cannot
    check_target(tmp_path / "new" / "newer" / "x.mp4")
    assert sorted(tmp_path.rglob("*")) == before  # nothing is made by looking


def test_a_read_only_file_system(tmp_path, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(InvalidInputError, match="cannot be written: Read-only file system"):
        check_target(tmp_path / "x.mp4")


def test_no_pyav_or_no_encoder(tmp_path, monkeypatch):
    monkeypatch.setattr(video, "_CODECS", ("libnothing",))
    with pytest.raises(BackendUnavailableError, match="none of the encoders libnothing"):
        check_target(tmp_path / "x.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailableError, match="pip install av"):
        check_target(tmp_path / "x.mp4")


# -- reading ---------------------------------------------------------------------------------------


def test_what_was_written_is_read(tmp_path):
    clip = moving_square(5, 32, 48)
    path = save_video(clip, tmp_path / "clip.mp4", fps=8)
    frames = load_video(path)
    np.testing.assert_array_equal(np.stack(frames), read(path)[0])
    assert [frame.dtype for frame in frames] == [np.uint8] * 5


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_phones_say_beside_the_picture_how_far_to_turn_it(tmp_path, turns):
    path = save_video(moving_square(2, 32, 48), tmp_path / "clip.mp4", fps=8)
    lying = np.stack(load_video(path))
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turns]  # clockwise, in y downwards
    matrix = (cos, sin, 0, -sin, cos, 0, 0, 0, 1)
    unit = [1 << 16, 1 << 16, 1 << 30] * 3
    box = struct.pack(">9i", *(value * one for value, one in zip(matrix, unit, strict=True)))
    plain = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    head, tkhd, tail = path.read_bytes().partition(b"tkhd")
    path.write_bytes(head + tkhd + tail.replace(plain, box, 1))
    upright = np.stack(load_video(path))
    np.testing.assert_array_equal(upright, np.rot90(lying, -turns, axes=(1, 2)))


def test_files_that_are_no_video(tmp_path, monkeypatch):
    path = save_video(moving_square(9, 32, 48), tmp_path / "clip.mp4", fps=8)
    text, sound, cut = (tmp_path / name for name in ("text.mp4", "sound.wav", "cut.mp4"))
    text.write_text("no video")
    with wave.open(str(sound), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))
    cut.write_bytes(path.read_bytes()[:200])
    for name, words in {
        "text.mp4": "text.mp4 cannot be decoded: Invalid data",
        "sound.wav": "has no pictures in it",
        "cut.mp4": "cannot be decoded",
        ".": "is a folder",
        "none.mp4": "does not exist",
    }.items():
        with pytest.raises(InvalidInputError, match=words) as error:
            load_video(tmp_path / name)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(video, "_MOST_FRAMES", 8)
    with pytest.raises(InvalidInputError, match="more than 8 frames: cut it"):
        load_video(path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BackendUnavailableError, match="reading a video needs PyAV"):
        load_video(path)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(8), r"sound has shape \[8\]"),
        (np.zeros((3, 8)), r"sound has shape \[3, 8\]"),
        (np.zeros((2, 0)), r"sound has shape \[2, 0\]"),
        (np.full((1, 8), np.inf), "sound has NaN or infinity"),
    ],
)
def test_sound_that_cannot_be(tmp_path, samples, message):
    clip = np.zeros((2, 16, 16, 3), np.uint8)
    with pytest.raises(InvalidInputError, match=message):
        save_video(clip, tmp_path / "a.mp4", fps=24, sound=video.Sound(samples, 24_000))
    assert not list(tmp_path.iterdir())
