"""Builds librainfusion_trt.so from a checkout with CMake, and finds it again."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rainfusion_trt.errors import LibraryNotFoundError, PluginBuildError
from rainfusion_trt.plugin.toolkit import CudaToolkit, find_cuda_toolkit

LIBRARY_NAME = "librainfusion_trt.so"
STATIC_LIBRARY_NAMES = (
    "librainfusion_trt_static10.so",
    "librainfusion_trt_static11.so",
    "librainfusion_trt_static_rtx.so",
)
BUILD_COMMAND = "rainfusion-trt build-plugin"
DEFAULT_ARCHITECTURES = "80-real;90;120"  # those of CMakeLists.txt

_PACKAGE = Path(__file__).resolve().parents[1]
_CHECKOUT = _PACKAGE.parent
_SOURCE_PATTERNS = ("*.h", "*.cuh", "*.cc", "*.cu", "*.map", "*.cmake", "CMakeLists.txt")
_LOG_TAIL = 30  # lines of the log that go into an error


def find_library() -> Path:
    """Find librainfusion_trt.so.

    Looks at ``RAINFUSION_TRT_LIBRARY``, then in the package's ``lib`` directory, then in the
    checkout's ``build`` directory.

    Raises
    ------
    LibraryNotFoundError
        It is nowhere, or ``RAINFUSION_TRT_LIBRARY`` names no file.
    """
    chosen = os.environ.get("RAINFUSION_TRT_LIBRARY")
    if chosen:
        path = Path(chosen).expanduser().resolve()
        if not path.is_file():
            raise LibraryNotFoundError(f"RAINFUSION_TRT_LIBRARY names {path}, which is no file")
        return path
    places = [_PACKAGE / "lib" / LIBRARY_NAME, _CHECKOUT / "build" / LIBRARY_NAME]
    for path in places:
        if path.is_file():
            return path
    raise LibraryNotFoundError(
        f"{LIBRARY_NAME} is neither at {' nor at '.join(map(str, places))}; build it with "
        f"`{BUILD_COMMAND}` or set RAINFUSION_TRT_LIBRARY"
    )


def build_plugin(
    output: str | Path | None = None,
    *,
    architectures: str | Sequence[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
) -> Path:
    """Build librainfusion_trt.so unless it is up to date.

    Needs a checkout, a C++ compiler and nvcc (from a toolkit or from wheels, see
    `rainfusion_trt.plugin.toolkit`). The libraries for self-registration are put beside it.

    Parameters
    ----------
    output : str or Path, optional
        The library to write, by default ``build/librainfusion_trt.so`` in the checkout.
    architectures : str or sequence of str, optional
        CUDA architectures as CMake writes them, for example ``"80-real;90"``. By default
        ``RAINFUSION_CUDA_ARCHITECTURES``, else those of the GPUs in this machine, else the list in
        CMakeLists.txt.
    jobs : int, optional
        Compilers at the same time, by default as many as there are CPUs.
    force : bool
        Build even if sources and architectures have not changed.

    Returns
    -------
    Path
        The library.

    Raises
    ------
    PluginBuildError
        No checkout, no compiler, or the build failed; the message ends with the log's last lines.
    """
    sources = source_directory()
    build = sources / "build"
    output = Path(output).resolve() if output else build / LIBRARY_NAME
    chosen = architectures or os.environ.get("RAINFUSION_CUDA_ARCHITECTURES") or None
    if chosen is not None and not isinstance(chosen, str):
        chosen = ";".join(chosen)
    build.mkdir(exist_ok=True)
    with _locked(build / "plugin.lock"):
        stamp_file = output.with_name(output.name + ".json")
        sources_now = source_hash(sources)
        if not force and output.is_file() and _is_current(stamp_file, sources_now, chosen):
            return output
        wanted = chosen or _native_architectures()
        toolkit = find_cuda_toolkit(build)
        directory = build / "plugin"
        configure(sources, directory, toolkit, wanted or DEFAULT_ARCHITECTURES)
        compile_targets(directory, ["rainfusion_trt", *_targets(STATIC_LIBRARY_NAMES)], jobs)
        output.parent.mkdir(parents=True, exist_ok=True)
        for name in (*STATIC_LIBRARY_NAMES, LIBRARY_NAME):
            _install(directory / name, output if name == LIBRARY_NAME else output.parent / name)
        stamp = {"sources": sources_now, "architectures": wanted or DEFAULT_ARCHITECTURES}
        stamp_file.write_text(json.dumps(stamp) + "\n")
    return output


def source_directory() -> Path:
    """The checkout this package is imported from, or PluginBuildError if it is installed alone."""
    if (_CHECKOUT / "CMakeLists.txt").is_file() and (_CHECKOUT / "plugins").is_dir():
        return _CHECKOUT
    raise PluginBuildError(
        f"the plugin's sources are not beside the package ({_CHECKOUT} has no plugins/): clone the "
        "rainfusion-trt repository and `pip install -e .` there, or set RAINFUSION_TRT_LIBRARY to "
        f"a {LIBRARY_NAME} that was built elsewhere"
    )


def source_hash(checkout: Path) -> str:
    """Hash of all sources under plugins/, as plugins/cmake/SourceHash.cmake computes it."""
    root = checkout / "plugins"
    files = {path for pattern in _SOURCE_PATTERNS for path in root.rglob(pattern)}
    names = sorted(path.relative_to(root).as_posix() for path in files)
    manifest = "".join(
        f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    return hashlib.sha256(manifest.encode()).hexdigest()[:16]


def configure(sources: Path, directory: Path, toolkit: CudaToolkit, architectures: str) -> None:
    """Run CMake's configuration of `sources` in `directory`."""
    command = [
        *(_tool("cmake"), "-S", sources, "-B", directory),
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
    command = [_tool("cmake"), "--build", directory, "--parallel", str(count), "--target", *targets]
    _run(command, directory / "build.log", "Building the plugin")


def _native_architectures() -> str | None:
    """Architectures of the GPUs in this machine, or None if there is none."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    query = [nvidia_smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # the driver's tools are installed, but there is no driver
    found = sorted({line.strip().replace(".", "") for line in output.stdout.splitlines()})
    return ";".join(f"{capability}-real" for capability in found if capability.isdigit()) or None


def _targets(libraries: Sequence[str]) -> list[str]:
    return [name.removeprefix("lib").removesuffix(".so") for name in libraries]


def _find_tool(name: str) -> str | None:
    """`name` beside the running Python (where wheels put it), else on the path."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _tool(name: str) -> str:
    path = _find_tool(name)
    if path is None:
        raise PluginBuildError(f"{name} not found: `pip install 'rainfusion-trt[build]'`")
    return path


def _is_current(stamp_file: Path, sources: str, architectures: str | None) -> bool:
    """Whether the library was built from `sources` for the asked-for architectures.

    Without a wish, any architectures will do that run on the GPUs in this machine.
    """
    try:
        stamp = json.loads(stamp_file.read_text())
    except (OSError, ValueError):
        return False
    if stamp["sources"] != sources:
        return False
    if architectures is not None:
        return stamp["architectures"] == architectures
    built = [int(number) for number in re.findall(r"\d+", stamp["architectures"])]
    here = [int(number) for number in re.findall(r"\d+", _native_architectures() or "")]
    # Machine code runs on later GPUs of its own major version.
    return all(any(b // 10 == gpu // 10 and b <= gpu for b in built) for gpu in here)


def _install(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    temporary.replace(target)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that other processes that build in this checkout wait for."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
