"""The folder of links to TensorRT for RTX's libraries: what else lies there is never loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rainfusion_trt.engine import links as module
from rainfusion_trt.engine.flavour import available_flavours, rtx_link_directory
from rainfusion_trt.engine.links import link_folder
from rainfusion_trt.errors import BackendUnavailableError


@pytest.fixture
def wanted(tmp_path) -> dict[str, Path]:
    library = tmp_path / "installed" / "libx.so.1"
    library.parent.mkdir()
    library.write_bytes(b"the installed library")
    return {"libx.so.1": library, "libx.so": library}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache" / "libs" / "key"


def content(folder: Path) -> dict[str, Path]:
    return {entry.name: entry.resolve() for entry in folder.iterdir()}


def test_made_once(folder, wanted):
    assert link_folder(folder, wanted) == folder
    inode = folder.stat().st_ino
    assert link_folder(folder, wanted) == folder
    assert folder.stat().st_ino == inode and content(folder) == wanted
    assert folder.stat().st_mode & 0o777 == 0o700


def dangling(folder, tmp_path):
    (folder / "libx.so").unlink()
    (folder / "libx.so").symlink_to(tmp_path / "gone")


def planted_in_its_place(folder, tmp_path):
    (folder / "libx.so").unlink()
    (folder / "libx.so").write_bytes(b"planted")


def link_to_another(folder, tmp_path):
    (tmp_path / "evil.so").write_bytes(b"planted")
    (folder / "libx.so.1").unlink()
    (folder / "libx.so.1").symlink_to(tmp_path / "evil.so")


def planted_beside(folder, tmp_path):
    """A dependency of the library, which the loader would look for beside it."""
    (folder / "libcudart.so.13").write_bytes(b"planted")


def folder_inside(folder, tmp_path):
    (folder / "more").mkdir()
    (folder / "more" / "file").touch()


def one_missing(folder, tmp_path):
    (folder / "libx.so").unlink()


def link_instead_of_the_folder(folder, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def file_instead_of_the_folder(folder, tmp_path):
    for entry in folder.iterdir():
        entry.unlink()
    folder.rmdir()
    folder.write_bytes(b"")


def open_to_all(folder, tmp_path):
    folder.chmod(0o777)


@pytest.mark.parametrize(
    "change",
    [
        dangling,
        planted_in_its_place,
        link_to_another,
        planted_beside,
        folder_inside,
        one_missing,
        link_instead_of_the_folder,
        file_instead_of_the_folder,
        open_to_all,
    ],
)
def test_made_anew_where_it_is_not_what_it_was(folder, wanted, tmp_path, change):
    link_folder(folder, wanted)
    change(folder, tmp_path)
    assert link_folder(folder, wanted) == folder
    assert not folder.is_symlink() and content(folder) == wanted
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in folder.parent.iterdir()} == {".lock", "key"}
    assert wanted["libx.so"].read_bytes() == b"the installed library"


def test_many_at_once_see_it_whole(folder, wanted):
    def use(_):
        made = link_folder(folder, wanted)
        return content(made)

    with ThreadPoolExecutor(8) as pool:
        assert all(found == wanted for found in pool.map(use, range(40)))


@pytest.fixture
def unwritable(folder, monkeypatch):
    """A cache that cannot be written, also not by root."""
    folder.parent.parent.mkdir()
    folder.parent.write_bytes(b"")  # a file where a folder has to be
    monkeypatch.setattr(module, "_private", {})


def test_a_cache_that_cannot_be_written(folder, wanted, unwritable, caplog):
    caplog.set_level("INFO")
    made = link_folder(folder, wanted)
    assert made != folder and content(made) == wanted
    assert made.stat().st_mode & 0o777 == 0o700
    assert link_folder(folder, wanted) == made
    assert len(caplog.records) == 1 and "using a temporary folder" in caplog.text


def test_no_temporary_folder_either(folder, wanted, unwritable, monkeypatch):
    monkeypatch.setattr(module.tempfile, "tempdir", "/nowhere")
    with pytest.raises(BackendUnavailableError, match="RAINFUSION_TRT_CACHE") as error:
        link_folder(folder, wanted)
    assert "\n" not in str(error.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_of_somebody_else(folder, wanted, monkeypatch):
    monkeypatch.setattr(module, "_private", {})
    folder.parent.mkdir(parents=True)
    os.chown(folder.parent, 12345, -1)
    assert link_folder(folder, wanted) != folder


@pytest.mark.tensorrt
@pytest.mark.skipif("tensorrt_rtx" not in available_flavours(), reason="no TensorRT for RTX")
@pytest.mark.parametrize("cache", ["planted", "dangling", "unwritable"])
def test_tensorrt_for_rtx_loads_what_is_installed(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("RAINFUSION_TRT_CACHE", str(tmp_path))
    links = rtx_link_directory()
    if links is None or "site-packages" in str(links):
        pytest.skip("the libraries need no links here")
    if cache == "planted":
        (links / "libtensorrt_rtx.so").unlink()
        (links / "libtensorrt_rtx.so").write_bytes(b"no library")
        (links / "libtensorrt_rtx.so.99").write_bytes(b"no library")
    elif cache == "dangling":
        (links / "libtensorrt_rtx.so").unlink()
        (links / "libtensorrt_rtx.so").symlink_to(tmp_path / "gone")
    else:
        monkeypatch.setenv("RAINFUSION_TRT_CACHE", "/proc/nowhere")
    code = "from rainfusion_trt.engine.flavour import load_tensorrt; print(load_tensorrt().library)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"RAINFUSION_TRT_FLAVOUR": "tensorrt_rtx"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=120
    )
    assert "libtensorrt_rtx.so." in done.stdout, done.stderr
    assert "tensorrt_rtx_libs" in done.stdout  # the file, whatever link it was opened by
