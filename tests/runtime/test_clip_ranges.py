"""Clips that engines take, against the arithmetic by which their profiles were made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from helpers.engine_folders import PLAN, engine_metadata
from rainfusion_trt.engine.metadata import ENGINE_FILE, TensorRecord, save_metadata
from rainfusion_trt.engine.recipe import ShapeRange
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.runtime.artifacts import Part
from rainfusion_trt.runtime.clip_ranges import ClipRange, clip_ranges
from rainfusion_trt.runtime.engine_io import select_profile
from rainfusion_trt.runtime.graphs import graph_of_engine


def shapes_of(model, size):
    config = model.config()
    extents = model.extents(config, size, 2)
    return {given.name: given.shape(extents, config) for given in model.inputs}


def part_of(model, profiles, folder, component="transformer"):
    """An engine with a profile from a smallest to a largest clip for each name."""
    folder.mkdir()
    ends = {name: [shapes_of(model, size) for size in pair] for name, pair in profiles.items()}
    ranges = {
        given.name: {
            name: ShapeRange(min=low[given.name], opt=high[given.name], max=high[given.name])
            for name, (low, high) in ends.items()
        }
        for given in model.inputs
    }
    inputs = tuple(
        TensorRecord(name=name, dtype="float16", shape=(-1,) * len(of["a"].min), profiles=of)
        for name, of in ranges.items()
    )
    metadata = engine_metadata(
        model=model.name,
        component=component,
        config=model.config(),
        profiles=tuple(profiles),
        inputs=inputs,
    )
    (folder / ENGINE_FILE).write_bytes(PLAN)
    save_metadata(folder, metadata)
    return Part(component, folder, None, (graph_of_engine(folder),)), metadata


def artifacts(model, *parts):
    return SimpleNamespace(model=model, parts=parts, size=VideoSize(9, 64, 96))


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("cogvideox-5b", VideoSize(9, 64, 96), VideoSize(49, 480, 720)),
        ("wan2.1-1.3b", VideoSize(5, 64, 96), VideoSize(81, 480, 832)),
        ("ltx-video-2b", VideoSize(9, 64, 96), VideoSize(161, 512, 704)),
        ("hunyuanvideo", VideoSize(5, 64, 96), VideoSize(129, 720, 1280)),
    ],
)
def test_ranges_are_those_that_profiles_serve(tmp_path, name, low, high):
    model = get_model(name)
    part, metadata = part_of(model, {"a": (low, high)}, tmp_path / "engine")
    (found,) = clip_ranges(artifacts(model, part), "tensorrt_rtx")
    assert (found.frames, found.height, found.width) == (
        (low.frames, high.frames),
        (low.height, high.height),
        (low.width, high.width),
    )
    assert found.largest == high and low in found
    _, step = model.frame_counts()
    unit = model.vae_pixels * model.patch_pixels
    for size in (
        VideoSize(high.frames + step, low.height, low.width),
        VideoSize(low.frames, high.height + unit, low.width),
        VideoSize(low.frames, low.height, low.width - unit),
    ):
        assert size not in found
        with pytest.raises(InvalidInputError, match="no optimisation profile"):
            select_profile(metadata, shapes_of(model, size))
    assert select_profile(metadata, shapes_of(model, low)) == 0


def test_every_profile_is_a_range(tmp_path):
    model = get_model("wan2.1-1.3b")
    sizes = {"a": VideoSize(81, 480, 832), "b": VideoSize(49, 720, 1280)}
    part, _ = part_of(model, {n: (s, s) for n, s in sizes.items()}, tmp_path / "engine")
    found = clip_ranges(artifacts(model, part), "tensorrt_rtx")
    assert found == (
        ClipRange((81, 81), (480, 480), (832, 832)),
        ClipRange((49, 49), (720, 720), (1280, 1280)),
    )


def test_two_engines_take_what_both_take(tmp_path):
    model = get_model("wan2.2-a14b")
    small, middle, large = VideoSize(9, 64, 96), VideoSize(41, 320, 480), VideoSize(81, 480, 832)
    parts = [
        part_of(model, {"a": pair}, tmp_path / component, component)[0]
        for component, pair in zip(
            model.components, ((small, middle), (middle, large)), strict=True
        )
    ]
    assert clip_ranges(artifacts(model, *parts), "tensorrt_rtx") == (
        ClipRange((41, 41), (320, 320), (480, 480)),
    )


def test_frames_of_all_models():
    """Allegro takes any number of frames, MiniMax-H3 those of its own VAE."""
    assert get_model("allegro").frame_counts() == (1, 1)
    assert get_model("wan2.1-14b").frame_counts() == (1, 4)
    assert get_model("minimax-h3").frame_counts() == (5, 17)
