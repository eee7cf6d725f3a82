"""Files of the demo: checked before it starts, rebuilt when damaged, never those of others."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.demo import __main__ as demo
from rainfusion_trt.demo import stamp, steps
from rainfusion_trt.demo.sheet import check_sheet, write_sheet
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.export import writer
from rainfusion_trt.models import VideoSize, get_model

SIZE = VideoSize(9, 128, 192)
MODEL = get_model("cogvideox")
SHOT = steps.Shot("a red panda", SIZE, steps=2, seed=0)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MODEL, size=SIZE)


@pytest.fixture(scope="module")
def first(pipe, tmp_path_factory) -> dict[str, bytes]:
    """Content of the files of one export."""
    path = tmp_path_factory.mktemp("first") / "demo-fp16.onnx"
    steps.export_once(MODEL, pipe, path, torch.float16, SHOT)
    return {file.name: file.read_bytes() for file in path.parent.iterdir()}


@pytest.fixture
def path(first, tmp_path) -> Path:
    for name, content in first.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path / "demo-fp16.onnx"


@pytest.fixture(autouse=True)
def quick(monkeypatch, request):
    """Exports write the first one's model again, by the exporter's own way to its place."""
    if "path" not in request.fixturenames:
        return
    model = request.getfixturevalue("first")["demo-fp16.onnx"]

    def export_model(*_args, output: Path, **_options):
        writer.check_output(output)
        with writer.staged(output) as staged:
            staged.write_bytes(model)
        return SimpleNamespace(facts=SimpleNamespace(attentions=1), error=None)

    monkeypatch.setattr("rainfusion_trt.export.export_model", export_model)


def export(pipe, path: Path, caplog) -> bool:
    """Whether it was exported again."""
    caplog.clear()
    with caplog.at_level("INFO", "rainfusion_trt.demo"):
        steps.export_once(MODEL, pipe, path, torch.float16, SHOT)
    return "is up to date" not in caplog.text


def cut_model(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty_model(path: Path) -> None:
    path.write_bytes(b"")


def lose_model(path: Path) -> None:
    path.unlink()


def lose_stamp(path: Path) -> None:
    stamp.stamp_file(path).unlink()


def stamp_says(text: str):
    def damage(path: Path) -> None:
        stamp.stamp_file(path).write_text(text)

    return damage


def stamp_of_version_0_2(path: Path) -> None:
    stamp_says(json.dumps({"transformer": "a", "exporter": "b", "versions": "c"}))(path)


@pytest.mark.parametrize(
    "damage",
    [
        *(cut_model, empty_model, lose_model, lose_stamp, stamp_of_version_0_2),
        *map(stamp_says, ["", "\n", "{}"]),
    ],
)
def test_damage_is_exported_again(pipe, path, caplog, damage):
    damage(path)
    assert export(pipe, path, caplog)
    assert writer.is_whole(path)
    assert not export(pipe, path, caplog)


@pytest.mark.parametrize("text", ["[]", "null", '{"title": "holiday"}', '{"transformer": ', "mine"])
def test_stamps_of_others_are_kept(pipe, path, caplog, text):
    before = path.read_bytes()
    stamp_says(text)(path)
    with pytest.raises(InvalidInputError, match=r"demo-fp16\.json exists, and is not as"):
        export(pipe, path, caplog)
    assert stamp.stamp_file(path).read_text() == text and path.read_bytes() == before


def test_a_model_that_was_changed_is_kept(pipe, path, caplog):
    """Longer or shorter than it was, but not its beginning."""
    whole = path.read_bytes()
    for content in (whole + b"x", b"x" * 10_000, whole[:-1] + b"x"):
        path.write_bytes(content)
        with pytest.raises(InvalidInputError, match="not as rainfusion-trt has written"):
            export(pipe, path, caplog)
        assert path.read_bytes() == content


# -- before it starts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("demo.mp4", "demo.jpg", "demo-fp16.onnx", "demo-fp16.onnx.data", "demo-fp16.json"),
        *("demo-fp32.onnx", "demo-fp32.json", "demo-fp16.engine/metadata.json"),
    ],
)
def test_files_of_others_end_it_at_once(tmp_path, monkeypatch, name):
    monkeypatch.setattr(demo, "load_trained", lambda _: pytest.fail("the work has started"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text("mine")
    with pytest.raises(InvalidInputError, match=Path(name).parts[0]):
        demo.demo(tmp_path, SHOT)
    assert file.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == [Path(name).parts[0]]


# -- the picture -----------------------------------------------------------------------------------


def clips(value: int) -> list[np.ndarray]:
    return [np.full((9, 32, 64, 3), value, np.uint8)]


def test_its_own_picture_is_replaced_and_can_be_read(tmp_path):
    for value in (40, 200):
        path = write_sheet(clips(value), tmp_path / "demo.jpg")
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            assert image.size == (160, 16)
            assert abs(int(np.asarray(image).mean()) - value) <= 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo.jpg"]


def test_pictures_of_others_are_kept(tmp_path):
    path = write_sheet(clips(40), tmp_path / "demo.jpg")
    with Image.open(path) as image:
        image.copy().save(path, "JPEG")  # edited
    content = path.read_bytes()
    for call in (check_sheet, lambda path: write_sheet(clips(40), path)):
        with pytest.raises(InvalidInputError, match=r"demo\.jpg exists, and is not as"):
            call(path)
    assert path.read_bytes() == content
