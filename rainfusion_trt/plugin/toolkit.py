"""Finds a CUDA compiler: an installed toolkit, or one put together from wheels."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from rainfusion_trt.errors import PluginBuildError

MIN_VERSION = (12, 8)  # the first nvcc that knows compute capability 12.0
_WHEELS = "nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl"


@dataclass(frozen=True)
class CudaToolkit:
    """A usable nvcc.

    Attributes
    ----------
    nvcc : Path
        The compiler.
    root : Path or None
        The directory CMake must take libraries and headers from; None if CMake may find it
        through the compiler.
    version : tuple of int
        Major and minor version of the compiler.
    """

    nvcc: Path
    root: Path | None
    version: tuple[int, int]


def find_cuda_toolkit(scratch: Path) -> CudaToolkit:
    """Find nvcc in ``CUDACXX``, ``CUDA_HOME``, ``PATH``, /usr/local/cuda or the wheels.

    Parameters
    ----------
    scratch : Path
        Directory in which a toolkit of links is made if only the wheels are there.

    Raises
    ------
    PluginBuildError
        There is none that is new enough.
    """
    too_old = []
    for nvcc in _installed_compilers():
        version = _version(nvcc)
        if version is not None and version >= MIN_VERSION:
            return CudaToolkit(nvcc, None, version)
        too_old.append(f"{nvcc} ({'.'.join(map(str, version)) if version else 'does not run'})")
    wheels = _wheel_directory()
    if wheels is not None:
        root = _link_toolkit(wheels, scratch / "cuda-toolkit")
        version = _version(root / "bin" / "nvcc")
        if version is not None and version >= MIN_VERSION:
            return CudaToolkit(root / "bin" / "nvcc", root, version)
        too_old.append(str(wheels))
    minimum = ".".join(map(str, MIN_VERSION))
    found = f"found only {', '.join(too_old)}; " if too_old else ""
    raise PluginBuildError(
        f"no CUDA compiler (nvcc {minimum} or newer): {found}install a CUDA toolkit and set "
        "CUDA_HOME, or `pip install 'rainfusion-trt[build]'`, which brings nvcc as wheels "
        f"({_WHEELS})"
    )


def _installed_compilers() -> list[Path]:
    candidates = [os.environ.get("CUDACXX")]
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(variable):
            candidates.append(str(Path(os.environ[variable]) / "bin" / "nvcc"))
    candidates += [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    return [Path(c) for c in dict.fromkeys(candidates) if c and Path(c).is_file()]


def _version(nvcc: Path) -> tuple[int, int] | None:
    try:
        output = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"release (\d+)\.(\d+)", output)
    return (int(match[1]), int(match[2])) if match else None


def _wheel_directory() -> Path | None:
    """``site-packages/nvidia/cu13``, where the CUDA 13 wheels unpack, if nvcc is in it."""
    spec = importlib.util.find_spec("nvidia")
    for location in (spec.submodule_search_locations or []) if spec else []:
        directory = Path(location) / "cu13"
        if (directory / "bin" / "nvcc").is_file():
            return directory
    return None


def _link_toolkit(wheels: Path, root: Path) -> Path:
    """Links that give the wheels the layout of a toolkit.

    nvcc looks for its libraries in ``lib64`` beside the directory it was called from, and CMake
    for ``libcudart.so``; the wheels have ``lib`` and ``libcudart.so.13``.
    """
    _remove_links(root)
    for name in ("bin", "lib64"):
        (root / name).mkdir(parents=True)
    for program in (wheels / "bin").iterdir():
        (root / "bin" / program.name).symlink_to(program)
    for library in (wheels / "lib").iterdir():
        (root / "lib64" / library.name).symlink_to(library)
        stem = library.name.split(".so.")[0]
        if stem != library.name:
            (root / "lib64" / f"{stem}.so").symlink_to(library)
    for name in ("include", "nvvm"):
        (root / name).symlink_to(wheels / name)
    (root / "lib").symlink_to("lib64")
    return root


def _remove_links(root: Path) -> None:
    """Remove an earlier toolkit of links, in which there is nothing else."""
    for folder, folders, files in os.walk(root, topdown=False):
        for path in (Path(folder, name) for name in (*folders, *files)):
            if path.is_symlink():
                path.unlink()
            elif path.is_dir():
                path.rmdir()
            else:
                raise PluginBuildError(f"{path} is in the way, and no build has put it there")
    if root.exists():
        root.rmdir()
