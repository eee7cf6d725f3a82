"""Pipelines of training runs: their own are replaced, folders of others are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.training.results import check_pipeline, save_folder
from rainfusion_trt.errors import InvalidInputError


class Pipe:
    def __init__(self, *names: str) -> None:
        self.names = names

    def save_pretrained(self, folder: Path) -> None:
        for name in self.names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(name)


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_its_own_is_replaced(tmp_path):
    folder = tmp_path / "new" / "pipeline"
    save_folder(Pipe("model_index.json", "vae/weights"), folder)
    save_folder(Pipe("model_index.json", "unet/weights"), folder)
    assert names(tmp_path / "new") == [
        *("pipeline/model_index.json", "pipeline/rainfusion.json", "pipeline/unet/weights"),
    ]


def add(folder: Path) -> None:
    (folder / "notes").write_text("mine")


def change(folder: Path) -> None:
    (folder / "vae" / "weights").write_text("mine")


def lose(folder: Path) -> None:
    (folder / "rainfusion.json").unlink()


def damage(folder: Path) -> None:
    (folder / "rainfusion.json").write_text("{")


@pytest.mark.parametrize("alter", [add, change, lose, damage])
def test_one_that_is_not_as_it_was_saved_is_kept(tmp_path, alter):
    folder = tmp_path / "pipeline"
    save_folder(Pipe("model_index.json", "vae/weights"), folder)
    alter(folder)
    before = {name: (folder / name).read_text() for name in names(folder)}
    for call in (check_pipeline, lambda folder: save_folder(Pipe("model_index.json"), folder)):
        with pytest.raises(InvalidInputError, match="not as a training run has saved it"):
            call(folder)
    assert {name: (folder / name).read_text() for name in names(folder)} == before
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
