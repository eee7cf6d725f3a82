"""Targets are looked at before the work starts, and looking leaves nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files import place
from rainfusion_trt.files.place import check_file, check_folder


def foreign(_path: Path) -> bool:
    return False


def test_new_places_are_right_and_stay_new(tmp_path):
    check_file(tmp_path / "a" / "b" / "file", ours=foreign)
    check_folder(tmp_path / "a" / "b" / "folder")
    assert not list(tmp_path.iterdir())


def test_files_of_others_are_named(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InvalidInputError, match=r"not as rainfusion-trt has written.*away, or so$"):
        check_file(path, ours=foreign, remedy=", or so")
    check_file(path, ours=lambda there: there.read_text() == "mine")


def test_places_where_no_folder_can_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name, words in {
        str(tmp_path / "file"): "is a file: name a folder",
        str(tmp_path / "link"): "is a link: name the folder itself",
        ".": "is the working directory",
        "../here": "is the working directory",
        "..": "does not end in the name of a folder",
        "/": "is a mount",
        str(tmp_path / "file" / "x"): "file is not a folder",
        "/proc": "is a mount",
        "/proc/x": "cannot be written",
        str(tmp_path / ("x" * 250)): "File name too long",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            check_folder(Path(name))


def test_a_read_only_folder(tmp_path):
    """For anybody but root, whom permissions do not stop."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    code = (
        "import os, sys; from pathlib import Path; from rainfusion_trt.files.place import *\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "check_file(Path(sys.argv[1]), ours=bool)"
    )
    for parent in (tmp_path, *tmp_path.parents):
        if parent.stat().st_uid == os.getuid() and parent != Path(tempfile.gettempdir()):
            parent.chmod(parent.stat().st_mode | 0o555)
        if parent == Path(tempfile.gettempdir()):
            break
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder / "file")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert "InvalidInputError" in done.stderr and "Permission denied" in done.stderr


def test_looks_that_were_killed_leave_nothing_for_ever(tmp_path):
    (tmp_path / f"{place._PROBE}a").mkdir()
    (tmp_path / f"{place._PROBE}b").mkdir()
    (tmp_path / f"{place._PROBE}b" / "mine").write_text("")
    check_file(tmp_path / "file", ours=foreign)
    assert [path.name for path in tmp_path.iterdir()] == [f"{place._PROBE}b"]
