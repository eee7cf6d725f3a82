"""Builds librainfusion_trt.so with CMake, from a checkout or an installed package, and finds it."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rainfusion_trt import __version__, places
from rainfusion_trt.errors import LibraryNotFoundError, PluginBuildError
from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.staging import staging
from rainfusion_trt.plugin.architectures import (
    DEFAULT_ARCHITECTURES,
    machine_code_for,
    native_capabilities,
    run_on,
)
from rainfusion_trt.plugin.cmake import compile_targets, configure, discard
from rainfusion_trt.plugin.elf import is_whole
from rainfusion_trt.plugin.stamp import read_stamp, stamp_file, write_stamp
from rainfusion_trt.plugin.toolkit import find_cuda_toolkit

LIBRARY_NAME = "librainfusion_trt.so"
STATIC_LIBRARY_NAMES = (
    "librainfusion_trt_static10.so",
    "librainfusion_trt_static11.so",
    "librainfusion_trt_static_rtx.so",
)
BUILD_COMMAND = "rainfusion-trt build-plugin"

_log = logging.getLogger(__name__)
_SOURCE_PATTERNS = ("*.h", "*.cuh", "*.cc", "*.cu", "*.map", "*.cmake", "CMakeLists.txt")


def find_library() -> Path:
    """Find librainfusion_trt.so.

    Looks at ``RAINFUSION_TRT_LIBRARY``, then in the package's ``lib`` directory, then in the
    checkout's ``build`` directory. An installed package has no checkout: there what
    `build_plugin` built from its sources comes first, then ``lib``, which wheels for one platform
    bring.

    Raises
    ------
    LibraryNotFoundError
        It is nowhere, or ``RAINFUSION_TRT_LIBRARY`` names no file.
    """
    chosen = os.environ.get("RAINFUSION_TRT_LIBRARY")
    if chosen:
        path = places.expanded(chosen, "RAINFUSION_TRT_LIBRARY").resolve()
        if not path.is_file():
            raise LibraryNotFoundError(f"RAINFUSION_TRT_LIBRARY names {path}, which is no file")
        return path
    root = places.repository()
    if root is not None and root != places.CHECKOUT:
        return _installed_library(root, places.cache_directory())
    candidates = [_shipped_library(), places.CHECKOUT / "build" / LIBRARY_NAME]
    for path in candidates:
        if path.is_file():
            return path
    raise _not_found(candidates)


def build_plugin(
    output: str | Path | None = None,
    *,
    architectures: str | Sequence[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
) -> Path:
    """Build librainfusion_trt.so unless it is up to date.

    Needs a C++ compiler and nvcc (from a toolkit or from wheels, see
    `rainfusion_trt.plugin.toolkit`). The libraries for self-registration are put beside it. A
    library that came with the wheel is up to date if it runs on the GPUs of this machine.

    Parameters
    ----------
    output : str or Path, optional
        The library to write; by default ``build/librainfusion_trt.so`` in a checkout, and in a
        directory of its sources and architectures under `rainfusion_trt.places.cache_directory`
        for an installed package. Files that lie there and are not as a build has left them are
        kept, and refused.
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
    InvalidInputError
        `output` cannot be written, or is in the way of a file of other origin.
    PluginBuildError
        No sources, no compiler, or the build failed; the message ends with the log's last lines.
    """
    sources = source_directory()
    sources_now = source_hash(sources)
    chosen = architectures or os.environ.get("RAINFUSION_CUDA_ARCHITECTURES") or None
    if chosen is not None and not isinstance(chosen, str):
        chosen = ";".join(chosen)
    installed = sources != places.CHECKOUT
    builds = _builds(places.cache_directory(), sources_now)
    if installed and not force and output is None:
        for library in _libraries(builds):
            if _is_current(library, sources_now, chosen, ptx=True):
                return library
    wanted = chosen or machine_code_for(native_capabilities()) or DEFAULT_ARCHITECTURES
    key = re.sub(r"[^0-9a-z-]+", "_", wanted)
    build = builds / key if installed else sources / "build"
    own_place = output is None
    output = build / LIBRARY_NAME if output is None else Path(output).absolute()
    with build_lock(build) as lock:
        if not force and _is_current(output, sources_now, chosen):
            return output
        _check_output(output, own_place=own_place)
        toolkit = find_cuda_toolkit(build)
        directory = build / "plugin"
        configure(sources, directory, toolkit, wanted, lock)
        targets = ["rainfusion_trt", *_targets(STATIC_LIBRARY_NAMES)]
        compile_targets(directory, targets, lock, jobs)
        _check_output(output, own_place=own_place)  # it took a while
        _install(directory, output, sources_now, wanted)
        if installed:  # nobody edits these sources, so that the objects serve no later build
            discard(directory)
        _installed_library.cache_clear()
    return output


def source_directory() -> Path:
    """Directory of the C++ sources: the checkout, or their copy in the installed package."""
    root = places.repository()
    if root is None:
        raise PluginBuildError(
            f"the plugin's sources are neither beside the package ({places.CHECKOUT} has no "
            "plugins/) nor in it: clone the rainfusion-trt repository and `pip install -e .` "
            f"there, or set RAINFUSION_TRT_LIBRARY to a {LIBRARY_NAME} that was built elsewhere"
        )
    return root


def source_hash(root: Path) -> str:
    """Hash of all sources under plugins/, as plugins/cmake/SourceHash.cmake computes it."""
    root = root / "plugins"
    files = {path for pattern in _SOURCE_PATTERNS for path in root.rglob(pattern)}
    names = sorted(path.relative_to(root).as_posix() for path in files)
    manifest = "".join(
        f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    )
    return hashlib.sha256(manifest.encode()).hexdigest()[:16]


def _shipped_library() -> Path:
    """The library's path in a wheel for one platform."""
    return places.PACKAGE / "lib" / LIBRARY_NAME


def _builds(cache: Path, sources: str) -> Path:
    """Directory of an installed package's builds; the package itself may be read-only."""
    return cache / "plugin" / f"{__version__}-{sources}"


def _libraries(builds: Path) -> list[Path]:
    """An installed package's libraries: those it built, newest first, then the wheel's own."""
    newest_first = sorted(
        builds.glob(f"*/{LIBRARY_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True
    )
    return [path for path in (*newest_first, _shipped_library()) if path.is_file()]


@functools.cache  # every launch of a kernel asks
def _installed_library(root: Path, cache: Path) -> Path:
    """The first of `_libraries` that runs on the GPUs of this machine, else the first."""
    sources = source_hash(root)
    builds = _builds(cache, sources)
    libraries = _libraries(builds)
    if not libraries:
        raise _not_found([builds, _shipped_library()])
    if len(libraries) > 1:
        libraries.sort(key=lambda path: not _is_current(path, sources, None, ptx=True))
    return libraries[0]


def _not_found(places_searched: Sequence[Path]) -> LibraryNotFoundError:
    return LibraryNotFoundError(
        f"{LIBRARY_NAME} is neither at {' nor at '.join(map(str, places_searched))}; build it with "
        f"`{BUILD_COMMAND}` or set RAINFUSION_TRT_LIBRARY"
    )


def _targets(libraries: Sequence[str]) -> list[str]:
    return [name.removeprefix("lib").removesuffix(".so") for name in libraries]


def _is_current(
    library: Path, sources: str, architectures: str | None, *, ptx: bool = False
) -> bool:
    """Whether `library` was built from `sources` for the asked-for architectures.

    Without a wish, any architectures will do that run on the GPUs in this machine, as machine code
    or, with `ptx`, as PTX.
    """
    stamp = read_stamp(library)
    if stamp is None or (stamp.sources, stamp.version) != (sources, __version__):
        return False
    if not is_whole(library):
        return False
    # Tools that repair a wheel may change its library; pip has compared what it installed.
    if library != _shipped_library() and not (
        library.name in stamp.files and stamp.is_met(library.parent)
    ):
        return False
    if architectures is not None:
        return stamp.architectures == architectures
    built = stamp.architectures
    return all(run_on(built, capability, ptx=ptx) for capability in native_capabilities())


def _built_names(output: Path) -> tuple[str, ...]:
    return (output.name, *STATIC_LIBRARY_NAMES)


def _check_output(output: Path, *, own_place: bool) -> None:
    """Refuse what cannot be written, and outside our own folder the place of others' files."""
    stamp = read_stamp(output)
    for name in _built_names(output):
        check_file(
            output.with_name(name),
            ours=lambda path: own_place or (stamp is not None and stamp.names(path)),
        )
    check_file(stamp_file(output), ours=lambda _: own_place or stamp is not None)


def _install(directory: Path, output: Path, sources: str, architectures: str) -> None:
    """Put the built libraries and their stamp in place, all or none."""
    names = _built_names(output)
    with staging(stamp_file(output)) as stage:
        for name in names:
            source = directory / (LIBRARY_NAME if name == output.name else name)
            shutil.copy2(source, stage.new / name)
        write_stamp(
            stage.new,
            output,
            names,
            sources=sources,
            architectures=architectures,
            version=__version__,
        )
        stage.publish(*names)


@contextlib.contextmanager
def build_lock(build: Path) -> Iterator[int]:
    """Make the directory and hold a lock that other processes that build in it wait for.

    Gives its file descriptor, which compilers inherit: while one of them lives, nobody else builds.
    """
    try:
        build.mkdir(parents=True, exist_ok=True)
        file = (build / "plugin.lock").open("a")
    except OSError as error:
        raise PluginBuildError(
            f"cannot build in {build}: {error.strerror}; set RAINFUSION_TRT_CACHE to a directory "
            "that can be written to"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process is building in %s: waiting for it", build)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()
