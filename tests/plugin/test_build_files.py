"""What a build of the plugin replaces, what it never touches, and what damage and kills leave.

Commands do not run here, or are small stand-ins for CMake, ninja and nvcc in real processes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from helpers.elf import empty_library
from helpers.running import processes_of
from rainfusion_trt import places
from rainfusion_trt.errors import InvalidInputError, LibraryNotFoundError, PluginBuildError
from rainfusion_trt.operator import native
from rainfusion_trt.plugin import build as module
from rainfusion_trt.plugin import cmake, elf, toolkit
from rainfusion_trt.plugin.build import LIBRARY_NAME, STATIC_LIBRARY_NAMES, build_plugin
from rainfusion_trt.plugin.toolkit import CudaToolkit

ROOT = Path(__file__).parents[2]
NAMES = (LIBRARY_NAME, *STATIC_LIBRARY_NAMES)


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A checkout with one source file, without a GPU."""
    root = tmp_path / "checkout"
    (root / "plugins").mkdir(parents=True)
    (root / "plugins" / "a.cc").write_text("int main() {}\n")
    monkeypatch.setattr(places, "CHECKOUT", root)
    monkeypatch.setattr(module, "source_directory", lambda: root)
    monkeypatch.setattr(module, "native_capabilities", tuple)
    monkeypatch.setattr(
        module, "find_cuda_toolkit", lambda _: CudaToolkit(Path("n"), None, (13, 0))
    )
    monkeypatch.delenv("RAINFUSION_CUDA_ARCHITECTURES", raising=False)
    return root


@pytest.fixture
def builds(monkeypatch) -> list[int]:
    """Numbers of the builds that ran; libraries hold theirs."""
    seen: list[int] = []

    def run(_command, log, title, _lock):
        if title.startswith("Building"):
            seen.append(len(seen))
            for name in NAMES:
                (log.parent / name).write_bytes(empty_library(f"{name} {seen[-1]}"))

    monkeypatch.setattr(cmake, "_run", run)
    return seen


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


# -- damage ----------------------------------------------------------------------------------------


def stamp_of(library: Path) -> Path:
    return library.with_name(LIBRARY_NAME + ".json")


def cut_library(library: Path) -> None:
    os.truncate(library, 10)


def empty_file(library: Path) -> None:
    library.write_bytes(b"")


def change_byte(library: Path) -> None:
    content = bytearray(library.read_bytes())
    content[-1] ^= 1
    library.write_bytes(content)


def lose_shim(library: Path) -> None:
    library.with_name(STATIC_LIBRARY_NAMES[0]).unlink()


def cut_shim(library: Path) -> None:
    os.truncate(library.with_name(STATIC_LIBRARY_NAMES[1]), 10)


def lose_library(library: Path) -> None:
    library.unlink()


def lose_stamp(library: Path) -> None:
    stamp_of(library).unlink()


def stamp_without_files(library: Path) -> None:
    stamp = json.loads(stamp_of(library).read_text())
    stamp_of(library).write_text(json.dumps({**stamp, "files": {}}))


def stamp_says(text: str):
    def damage(library: Path) -> None:
        stamp_of(library).write_text(text)

    return damage


DAMAGES = [
    *(cut_library, empty_file, change_byte, lose_library, lose_shim, cut_shim, lose_stamp),
    stamp_without_files,
    *map(
        stamp_says, ["", "{}", "[]", "null", '{"sources": ', '{"sources": 1}', "\x00", "[" * 10**5]
    ),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_build_is_built_again(checkout, builds, damage):
    library = build_plugin(architectures="80-real")
    assert build_plugin() == library and builds == [0]
    damage(library)
    for _ in range(2):  # the second time there is nothing to do
        assert build_plugin() == library and builds == [0, 1]
    assert library.read_bytes() == empty_library(f"{LIBRARY_NAME} 1")
    assert all(library.with_name(name).is_file() for name in NAMES)


@pytest.mark.parametrize("size", [0, 63, 64, 1000, -1])
def test_a_part_of_a_library_is_named_and_not_loaded(plugin_library, tmp_path, size):
    """Loading it ends the process."""
    assert elf.is_whole(plugin_library)
    part = tmp_path / LIBRARY_NAME
    content = plugin_library.read_bytes()
    part.write_bytes(content[:size])
    assert not elf.is_whole(part)
    with pytest.raises(LibraryNotFoundError, match="a part of one; rebuild it"):
        native.load_library(part)


def test_info_survives_a_part_of_a_library(plugin_library, tmp_path):
    part = tmp_path / LIBRARY_NAME
    part.write_bytes(plugin_library.read_bytes()[:1000])
    stamp = stamp_of(plugin_library)
    if stamp.is_file():
        shutil.copy(stamp, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "rainfusion_trt.cli", "info"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "RAINFUSION_TRT_LIBRARY": str(part), "COLUMNS": "400"},
    )
    assert done.returncode == 0, done.stderr
    assert "a part of one; rebuild it with `rainfusion-trt build-plugin`" in done.stdout


@pytest.mark.parametrize("program", ["/bin/sh", sys.executable])
def test_programs_of_the_system_are_whole(program):
    assert elf.is_whole(Path(program).resolve())


# -- files of others -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mine.so", "mine.so.json", *STATIC_LIBRARY_NAMES])
@pytest.mark.parametrize("force", [False, True])
def test_files_of_others_are_kept(checkout, builds, tmp_path, name, force):
    folder = tmp_path / "libraries"
    folder.mkdir()
    (folder / name).write_text("{}")
    with pytest.raises(InvalidInputError, match=f"{name} exists, and is not as"):
        build_plugin(folder / "mine.so", force=force)
    assert tree(folder) == {name: b"{}"} and not builds


def test_its_own_files_are_replaced_elsewhere_too(checkout, builds, tmp_path):
    output = tmp_path / "libraries" / "mine.so"
    for number in (0, 1):
        assert build_plugin(output, force=True) == output
        assert output.read_bytes() == empty_library(f"{LIBRARY_NAME} {number}")
    assert set(tree(output.parent)) == {"mine.so", "mine.so.json", *STATIC_LIBRARY_NAMES}
    output.write_text("mine")
    with pytest.raises(InvalidInputError, match="not as rainfusion-trt has written"):
        build_plugin(output)
    assert output.read_text() == "mine"


def test_a_file_that_comes_during_the_build_is_kept(checkout, builds, tmp_path, monkeypatch):
    output = tmp_path / "mine.so"
    monkeypatch.setattr(module, "compile_targets", lambda *_: output.write_text("mine"))
    with pytest.raises(InvalidInputError, match="not as rainfusion-trt has written"):
        build_plugin(output)
    assert output.read_text() == "mine"


def test_outputs_that_cannot_be_written(checkout, builds, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link.so").symlink_to(tmp_path / "file")
    for output, words in {
        tmp_path: "is a folder",
        tmp_path / "link.so": "is a link",
        tmp_path / "file" / "lib.so": "is not a folder",
        Path("/proc/lib.so"): "cannot be written",
    }.items():
        with pytest.raises(InvalidInputError, match=words):
            build_plugin(output)
    assert not builds
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("place", ["plugin/CMakeCache.txt", "plugin/notes/a"])
def test_a_folder_of_that_name_is_not_emptied(checkout, builds, place):
    mine = checkout / "build" / place
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PluginBuildError, match="no build has made it"):
        build_plugin()
    assert mine.read_text() == "mine"


def test_links_of_the_toolkit_go_and_files_stay(tmp_path):
    root = tmp_path / "cuda-toolkit"
    (root / "bin").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("kept")
    (root / "lib").symlink_to(tmp_path / "elsewhere")
    (root / "bin" / "nvcc").symlink_to("nowhere")
    toolkit._remove_links(root)
    assert not root.exists()
    assert (tmp_path / "elsewhere" / "file").read_text() == "kept"
    (root / "bin").mkdir(parents=True)
    (root / "bin" / "nvcc").write_text("mine")
    with pytest.raises(PluginBuildError, match="nvcc is in the way"):
        toolkit._remove_links(root)
    assert (root / "bin" / "nvcc").read_text() == "mine"


# -- killed ----------------------------------------------------------------------------------------

# CMake that starts a ninja, which starts an nvcc in a process group of its own, as ninja does.
CMAKE = """#!/bin/sh
case "$1" in
  -S) exit 0 ;;
esac
setsid {python} -c 'import sys, time; open(sys.argv[1], "a").write("x"); time.sleep(600)' "$2/nvcc"
"""
BUILD = """
import sys
from pathlib import Path
from rainfusion_trt import places
from rainfusion_trt.plugin import build, cmake
from rainfusion_trt.plugin.toolkit import CudaToolkit

root = Path(sys.argv[1])
places.CHECKOUT = root
build.source_directory = lambda: root
build.find_cuda_toolkit = lambda _: CudaToolkit(Path("n"), None, (13, 0))
cmake.tool = lambda name: str(root / name)
build.build_plugin(architectures="80-real")
"""


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_locked(checkout: Path) -> bool:
    with (checkout / "build" / "plugin.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.fixture
def started(checkout):
    """A build in a process of its own, with its nvcc at work, and what tells that nvcc."""
    (checkout / "cmake").write_text(CMAKE.format(python=sys.executable))
    (checkout / "cmake").chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(checkout)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CXX": "c++"},
    )
    nvcc = checkout / "build" / "plugin" / "nvcc"
    assert wait_until(nvcc.exists)
    assert wait_until(lambda: processes_of(str(nvcc)))
    yield process, str(nvcc)
    process.kill()
    process.wait()
    for left in processes_of(str(nvcc)):
        os.kill(left, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_compilers_end_with_a_killed_build(checkout, started, number, builds):
    process, nvcc = started
    assert is_locked(checkout)
    process.send_signal(number)
    process.wait(30)
    assert wait_until(lambda: not processes_of(nvcc))
    assert wait_until(lambda: not is_locked(checkout))
    assert build_plugin(architectures="80-real").is_file()


def test_while_a_compiler_lives_the_lock_is_held(checkout, started, builds):
    """Also if all that would have ended it is killed at once."""
    process, nvcc = started
    for guard in processes_of("guard.py"):
        if (checkout / "cmake").as_posix() in Path(f"/proc/{guard}/cmdline").read_text():
            os.kill(guard, signal.SIGSTOP)
            os.kill(guard, signal.SIGKILL)
    process.kill()
    process.wait()
    assert processes_of(nvcc) and is_locked(checkout)
    second = threading.Thread(target=build_plugin, kwargs={"architectures": "80-real"})
    second.start()
    second.join(1.0)
    assert second.is_alive() and not builds
    for left in (*processes_of(nvcc), *processes_of(str(checkout / "cmake"))):
        os.kill(left, signal.SIGKILL)
    second.join(30)
    assert builds == [0]


def test_a_configuration_that_was_cut_short_is_done_again(checkout, builds):
    build_plugin(architectures="80-real")
    directory = checkout / "build" / "plugin"
    (directory / "configuration.txt").write_text("")
    (directory / "half.o").write_text("")
    build_plugin(architectures="80-real", force=True)
    assert not (directory / "half.o").exists()


def test_make_starts_anew_where_ninja_goes_on(checkout, builds, monkeypatch):
    """ninja keeps account of what it finished; make believes any file that is new."""
    monkeypatch.setattr(cmake, "tool", lambda name: f"/{name}")

    def killed(_command, log, title, _lock):
        if title.startswith("Building"):
            (log.parent / "half.o").write_text("")
            os._exit(1)

    for ninja in (None, "/ninja"):
        monkeypatch.setattr(cmake, "_find_tool", lambda name, found=ninja: found)
        if (child := os.fork()) == 0:
            cmake._run = killed
            build_plugin(architectures="80-real", force=True)
        os.waitpid(child, 0)
        half = checkout / "build" / "plugin" / "half.o"
        assert half.exists()
        build_plugin(architectures="80-real", force=True)
        assert half.exists() is (ninja is not None)
