"""Runs CMake: configuration and compilation, with their logs and a progress bar."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rainfusion_trt.errors import PluginBuildError
from rainfusion_trt.plugin.toolkit import CudaToolkit
from rainfusion_trt.processes.run import guarded

_LOG_TAIL = 30  # lines of the log that go into an error
_MARKER = "configuration.txt"  # in a folder that is ours: its configuration, empty until it is done


def configure(
    sources: Path, directory: Path, toolkit: CudaToolkit, architectures: str, lock: int
) -> None:
    """Run CMake's configuration of `sources` in `directory`; its processes inherit `lock`."""
    command = [
        *(tool("cmake"), "-S", sources, "-B", directory),
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_CUDA_COMPILER={toolkit.nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
        f"-DPython3_EXECUTABLE={sys.executable}",
    ]
    if toolkit.root is not None:
        command.append(f"-DCUDAToolkit_ROOT={toolkit.root}")
    ninja = _find_tool("ninja")
    if ninja is not None:
        command += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    if not os.environ.get("CXX") and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        raise PluginBuildError("no C++ compiler: install one (`apt-get install g++`) or set CXX")
    # A cache of another compiler or of another checkout cannot be reused.
    signature = "\n".join(map(str, command))
    marker = directory / _MARKER
    if not (marker.is_file() and marker.read_bytes() == signature.encode()):
        _empty(directory)
        directory.mkdir(exist_ok=True)
        marker.write_text("")
    _run(command, directory / "configure.log", "Configuring the plugin", lock)
    marker.write_bytes(signature.encode())


def compile_targets(
    directory: Path, targets: Sequence[str], lock: int, jobs: int | None = None
) -> None:
    """Build `targets` in a configured `directory`."""
    count = jobs or os.cpu_count() or 1
    command = [tool("cmake"), "--build", directory, "--parallel", str(count), "--target", *targets]
    marker = directory / _MARKER
    signature = marker.read_bytes()
    if _find_tool("ninja") is None:
        marker.write_text("")  # make takes half an object for a whole one if it is killed now
    try:
        _run(command, directory / "build.log", "Building the plugin", lock)
    finally:
        marker.write_bytes(signature)


def discard(directory: Path) -> None:
    """Remove a folder that `configure` has made."""
    _empty(directory)
    (directory / _MARKER).unlink(missing_ok=True)
    directory.rmdir()


def _empty(directory: Path) -> None:
    """Remove all but the marker, which tells that it may be removed, should this be killed."""
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / _MARKER).is_file():
        raise PluginBuildError(
            f"{directory} is in the way, and no build has made it (it has no {_MARKER}): move it "
            "away"
        )
    for path in directory.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _MARKER:
            path.unlink()


def _find_tool(name: str) -> str | None:
    """`name` beside the running Python (where wheels put it), else on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def tool(name: str) -> str:
    """Path of `name`, or PluginBuildError with the way to get it."""
    path = _find_tool(name)
    if path is None:
        raise PluginBuildError(f"{name} not found: `pip install 'rainfusion-trt[build]'`")
    return path


def _run(command: Sequence[object], log: Path, title: str, lock: int) -> None:
    """Run `command` with its output in `log`, showing ninja's or make's progress.

    It and all that it starts end with this process, and inherit `lock`.
    """
    tail: deque[str] = deque(maxlen=_LOG_TAIL)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    with log.open("w") as file, progress:
        task = progress.add_task(title, total=None)
        with guarded(
            [str(part) for part in command],
            keep=(lock,),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            for line in process.stdout or ():
                file.write(line)
                tail.append(line)
                step = re.match(r"\[ *(\d+)/(\d+)\]", line)
                if step:
                    progress.update(task, completed=int(step[1]), total=int(step[2]))
            if process.wait() == 0:
                total = progress.tasks[0].total or 1
                progress.update(task, completed=total, total=total)
    if process.returncode != 0:
        raise PluginBuildError(
            f"{title.lower()} failed with exit status {process.returncode}; the log is {log}, its "
            f"last lines:\n{''.join(tail).rstrip()}"
        )
