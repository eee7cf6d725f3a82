"""Pictures and clips of every form, and those that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.images import read_clip, read_image, read_images
from rainfusion_trt.video import save_video

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
RGB = Image.fromarray(PIXELS)
FLOAT = (PIXELS / 255).astype(np.float32)
GREY = np.repeat(PIXELS[..., :1], 3, axis=2)
OPAQUE = np.dstack([PIXELS, np.full((6, 10), 255, np.uint8)])
CLEAR = np.dstack([PIXELS, np.full((6, 10), 254, np.uint8)])


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


@pytest.mark.parametrize(
    "value",
    [
        RGB,
        PIXELS,
        PIXELS[None],
        PIXELS.astype(np.int64),
        FLOAT,
        FLOAT.astype(np.float64),
        OPAQUE,
        Image.fromarray(OPAQUE),
        tensor(PIXELS),
        tensor(FLOAT),
        tensor(FLOAT)[None],
        tensor(FLOAT).requires_grad_(),
        torch.from_numpy(PIXELS),
        [PIXELS],
    ],
    ids=lambda value: f"{type(value).__name__}{getattr(value, 'shape', '')}",
)
def test_one_picture_of_every_form(value):
    image = read_images(value)
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize(
    "value",
    [
        PIXELS[..., 0],
        PIXELS[..., :1],
        torch.from_numpy(PIXELS[..., 0].copy()),
        tensor(PIXELS[..., :1]),
        Image.fromarray(PIXELS[..., 0]),
        Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257),
    ],
)
def test_grey_pictures_of_8_and_16_bits(value):
    np.testing.assert_array_equal(np.asarray(read_image(value)), GREY)


def test_bfloat16_is_off_by_a_level_at_most():
    image = read_image(tensor(FLOAT).bfloat16())  # 8 bits
    assert np.abs(np.asarray(image).astype(int) - PIXELS).max() <= 1


def test_several_pictures_stay_several():
    for value in ([RGB, PIXELS], torch.stack([tensor(PIXELS)] * 2), np.stack([PIXELS] * 2)):
        images = read_images(value)
        assert len(images) == 2
        for image in images:
            np.testing.assert_array_equal(np.asarray(image), PIXELS)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    RGB.save(path, **({"lossless": True} if suffix == "webp" else {}))
    for given in (path, str(path)):
        np.testing.assert_array_equal(np.asarray(read_image(given)), PIXELS)


def test_a_photograph_that_was_taken_upright(tmp_path):
    path = tmp_path / "phone.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned clockwise
    RGB.save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.rot90(PIXELS, -1))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(
            np.asarray(read_image(opened)), np.asarray(ImageOps.exif_transpose(opened))
        )


def test_a_palette(tmp_path):
    path = tmp_path / "x.gif"
    palette = RGB.quantize(16)
    palette.save(path)
    np.testing.assert_array_equal(np.asarray(read_image(path)), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (Image.new("RGB", (0, 4)), "has 0x4 pixels"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \[4, 4, 2\], expected \[height, width, 3\]"),
        (torch.zeros(7, 5, 6), r"shape \[7, 5, 6\], expected \[3, height, width\]"),
        (np.zeros((3, 40, 50), np.uint8), r"shape \[3, 40, 50\], expected \[height, width, 3\]"),
        (np.zeros(4), r"shape \[4\]"),
        (torch.full((3, 4, 4), float("nan")), "image holds values that are not finite"),
        (np.full((4, 4, 3), 128.0), r"from 128 to 128.*divide grey levels by 255"),
        (np.full((4, 4, 3), -1.0), r"bring \[-1, 1\] there"),
        (np.full((4, 4, 3), 65535, np.uint16), "integers from 65535"),
        (np.zeros((4, 4, 3), bool), "holds bool"),
        (CLEAR, "has transparent parts"),
        (CLEAR / 255, "has transparent parts"),
        (Image.fromarray(CLEAR), "has transparent parts"),
        (Image.new("CMYK", (4, 4)), "mode CMYK: convert it to RGB"),
        (Image.new("F", (4, 4)), "mode F"),
        (Image.new("I", (4, 4)), "mode I"),
        ("/no/such.png", "image /no/such.png does not exist"),
        ([], "empty list"),
        (None, "image is a NoneType: give a path"),
        (3, "image is a int"),
    ],
)
def test_what_is_no_picture(value, words):
    with pytest.raises(InvalidInputError, match=words) as error:
        read_images(value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_picture(tmp_path):
    animated, cut, text = tmp_path / "a.gif", tmp_path / "cut.png", tmp_path / "x.png"
    RGB.save(animated, save_all=True, append_images=[Image.fromarray(255 - PIXELS)])
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    text.write_text("no picture")
    clear = RGB.quantize(16)
    clear.save(tmp_path / "clear.png", transparency=clear.getpixel((0, 0)))
    for name, words in {
        "a.gif": "animated, of 2 frames: give one of them, or all as video=",
        "cut.png": "cannot be decoded",
        "x.png": "no picture that Pillow can read",
        "clear.png": "has transparent parts",
        ".": "is a folder",
    }.items():
        with pytest.raises(InvalidInputError, match=words) as error:
            read_image(tmp_path / name, "last_image")
        assert str(error.value).startswith(f"last_image {tmp_path}")


def test_a_picture_too_large_to_be_one(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    RGB.save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InvalidInputError, match="cannot be decoded: Image size"):
        read_image(path)


# -- clips -----------------------------------------------------------------------------------------

CLIP = np.random.default_rng(2).integers(0, 256, (3, 6, 10, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "value",
    [
        CLIP,
        CLIP[None],
        CLIP / 255,
        torch.from_numpy(CLIP).permute(0, 3, 1, 2),
        list(CLIP),
        [Image.fromarray(frame) for frame in CLIP],
        (Image.fromarray(frame) for frame in CLIP),
        [[Image.fromarray(frame) for frame in CLIP]],
    ],
)
def test_a_clip_of_every_form(value):
    frames = read_clip(value)
    assert all(frame.mode == "RGB" for frame in frames)
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in frames]), CLIP)


def test_several_clips_stay_several():
    clips = read_clip(np.stack([CLIP, 255 - CLIP]))
    assert len(clips) == 2 and len(clips[1]) == 3
    np.testing.assert_array_equal(np.asarray(clips[1][2]), 255 - CLIP[2])


def test_a_clip_of_a_file(tmp_path):
    pytest.importorskip("av")
    clip = np.zeros((5, 32, 48, 3), np.uint8)
    clip[:, 8:24, 8:40] = (np.arange(5) * 50)[:, None, None, None]
    path = save_video(clip, tmp_path / "x.mp4", fps=8)
    frames = read_clip(path)
    assert [frame.size for frame in frames] == [(48, 32)] * 5
    for frame, wanted in zip(frames, clip, strict=True):
        assert abs(int(np.asarray(frame)[16, 24, 0]) - int(wanted[16, 24, 0])) <= 4  # lossy


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "video has no frames"),
        ("/no/such.mp4", "video /no/such.mp4 does not exist"),
        ([RGB, Image.new("RGB", (4, 4))], "frames of 10x6, 4x4 pixels|frames of 4x4, 10x6 pixels"),
        ([RGB, "/no/such.png"], "frame 1 of video /no/such.png does not exist"),
        (torch.full((2, 3, 4, 4), float("inf")), "frame 0 of video holds values"),
        (PIXELS, "video is a ndarray of 3 axes"),
        (7, "video is a int"),
        (RGB, "video is a Image"),
    ],
)
def test_what_is_no_clip(value, words):
    with pytest.raises(InvalidInputError, match=words) as error:
        read_clip(value)
    assert "\n" not in str(error.value)
