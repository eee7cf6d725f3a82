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

_LOG_TAIL = 30  # lines of the log that go into an error


def configure(sources: Path, directory: Path, toolkit: CudaToolkit, architectures: str) -> None:
    """Run CMake's configuration of `sources` in `directory`."""
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
    marker = directory / "configuration.txt"
    if directory.exists() and (not marker.is_file() or marker.read_text() != signature):
        shutil.rmtree(directory)
    directory.mkdir(exist_ok=True)
    _run(command, directory / "configure.log", "Configuring the plugin")
    marker.write_text(signature)


def compile_targets(directory: Path, targets: Sequence[str], jobs: int | None = None) -> None:
    """Build `targets` in a configured `directory`."""
    count = jobs or os.cpu_count() or 1
    command = [tool("cmake"), "--build", directory, "--parallel", str(count), "--target", *targets]
    _run(command, directory / "build.log", "Building the plugin")


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


def _run(command: Sequence[object], log: Path, title: str) -> None:
    """Run `command` with its output in `log`, showing ninja's or make's progress."""
    tail: deque[str] = deque(maxlen=_LOG_TAIL)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    progress = Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True))
    with log.open("w") as file, progress:
        task = progress.add_task(title, total=None)
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
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
