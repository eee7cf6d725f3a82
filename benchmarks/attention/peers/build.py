"""Compiles shared libraries with nvcc, side by side, once for every state of their sources."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.plugin.toolkit import find_cuda_toolkit

logger = logging.getLogger("rainfusion_trt.bench")
_HERE = Path(__file__).resolve().parent
_ALL = ("-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC", "--use_fast_math")
_MACHINE = ("-gencode", "arch=compute_90a,code=sm_90a")


@dataclass(frozen=True)
class Library:
    """One file of this folder, compiled.

    Attributes
    ----------
    name
        Of the library.
    source
        Name of the file.
    flags
        For nvcc, beside those that all have.
    include
        Folders of headers.
    state
        What tells these headers from others, such as a commit.
    tested
        What to say if it does not compile.
    """

    name: str
    source: str
    flags: tuple[str, ...] = ()
    include: tuple[Path, ...] = ()
    state: str = ""
    tested: str = ""


def build(libraries: Iterable[Library], folder: Path) -> dict[str, Path]:
    """Compile what is not there yet.

    Parameters
    ----------
    folder
        Where libraries and logs of the compiler go.

    Returns
    -------
    dict
        Path of each library, by its name.

    Raises
    ------
    InvalidInputError
        One does not compile; the message names the log.
    PluginBuildError
        There is no nvcc.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(libraries)
    paths = {one.name: folder / f"{one.name}-{_digest(one)}.so" for one in wanted}
    missing = [one for one in wanted if not paths[one.name].is_file()]
    if missing:
        nvcc = find_cuda_toolkit(folder).nvcc
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(partial(_compile, nvcc, paths), missing))
    return paths


def _digest(library: Library) -> str:
    texts = [(_HERE / name).read_bytes() for name in (library.source, "tensor.h")]
    words = "\n".join((*_ALL, *_MACHINE, *library.flags, library.state))
    return hashlib.sha256(b"\0".join([*texts, words.encode()])).hexdigest()[:12]


def _compile(nvcc: Path, paths: Mapping[str, Path], library: Library) -> None:
    path = paths[library.name]
    temporary, log = path.with_suffix(".part"), path.with_suffix(".log")
    folders = [f"-I{folder}" for folder in (*library.include, _HERE)]
    command = [str(nvcc), *_ALL, *_MACHINE, *library.flags, *folders]
    command += [str(_HERE / library.source), "-o", str(temporary)]
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        run = subprocess.run(command, stdout=out, stderr=out, check=False)
    if run.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        first = next((line for line in lines if "error" in line), f"status {run.returncode}")
        tested = f"; tested with {library.tested}" if library.tested else ""
        raise InvalidInputError(f"{library.source} does not compile (log: {log}): {first}{tested}")
    temporary.replace(path)
    logger.info("compiled %s in %.0f s", path.name, time.monotonic() - start)
