"""Finds TensorRT, or TensorRT for RTX, and loads it in a state that can parse plugins.

Both have the same Python interface under different module names:

* ``tensorrt``: TensorRT 10 and 11.
* ``tensorrt_rtx`` (NVIDIA's own package) or ``tensorrt_rtx_bindings`` (plain wheels):
  TensorRT for RTX.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from rainfusion_trt.engine.links import link_folder
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.places import cache_directory

FlavourName = Literal["tensorrt", "tensorrt_rtx"]

MODULES: dict[FlavourName, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
_LIBRARY_STEMS: dict[FlavourName, str] = {
    "tensorrt": "libnvinfer.so",
    "tensorrt_rtx": "libtensorrt_rtx.so",
}
_preloaded = False
_INSTALL_HINT = (
    "install `tensorrt` (data centre GPUs) or "
    "`tensorrt-rtx-cu13-bindings tensorrt-rtx-cu13-libs` (TensorRT for RTX, plain wheels)"
)


@dataclass(frozen=True)
class TensorRTFlavour:
    """An imported TensorRT.

    Attributes
    ----------
    module : ModuleType
        The Python module with ``Builder``, ``Runtime`` and so on.
    name : FlavourName
        ``"tensorrt"`` or ``"tensorrt_rtx"``.
    version : str
        Full version, for example ``"11.4.0.12"`` or ``"1.7.1.116"``.
    major : int
        Its first number. TensorRT for RTX counts on its own.
    library : Path
        The loaded libnvinfer or libtensorrt_rtx.
    """

    module: ModuleType
    name: FlavourName
    version: str
    major: int
    library: Path

    def __str__(self) -> str:
        title = "TensorRT for RTX" if self.name == "tensorrt_rtx" else "TensorRT"
        return f"{title} {self.version}"


def available_flavours() -> tuple[FlavourName, ...]:
    """Names of the flavours that can be imported here, without importing them."""
    return tuple(name for name in MODULES if _find_module(name) is not None)


def load_tensorrt(preferred: str | None = None) -> TensorRTFlavour:
    """Import TensorRT or TensorRT for RTX.

    Parameters
    ----------
    preferred : str, optional
        ``"tensorrt"`` or ``"tensorrt_rtx"``: only this one will do. By default
        ``RAINFUSION_TRT_FLAVOUR`` if set, else ``tensorrt`` if importable, else ``tensorrt_rtx``.

    Returns
    -------
    TensorRTFlavour

    Raises
    ------
    InvalidInputError
        The name is neither of the two.
    BackendUnavailableError
        It is not installed, or it was imported before without the links its parser needs.
    """
    preferred = preferred or os.environ.get("RAINFUSION_TRT_FLAVOUR") or None
    if preferred is not None and preferred not in MODULES:
        raise InvalidInputError(
            f"unknown TensorRT flavour {preferred!r}: use 'tensorrt' or 'tensorrt_rtx'"
        )
    errors = []
    for name in MODULES:
        if preferred not in (None, name):
            continue
        module_name = _find_module(name)
        if module_name is None:
            errors.append(f"{name} is not installed")
            continue
        if name == "tensorrt_rtx":
            _preload_rtx()
        try:
            module = importlib.import_module(module_name)
        except (ImportError, OSError) as error:
            errors.append(f"import {module_name} failed: {error}")
            continue
        version = str(module.__version__)
        library = _loaded_library(_LIBRARY_STEMS[name])
        return TensorRTFlavour(module, name, version, int(version.split(".")[0]), library)
    raise BackendUnavailableError(f"no TensorRT: {'; '.join(errors)}; {_INSTALL_HINT}")


def rtx_link_directory() -> Path | None:
    """Directory in which every TensorRT for RTX library also has its name without version.

    The ONNX parser opens ``libtensorrt_rtx.so`` by that name when it meets a plugin, and the
    plain wheels hold ``libtensorrt_rtx.so.1`` only: the process then ends in ``std::terminate``.
    `load_tensorrt` uses this directory by itself; put it on ``LD_LIBRARY_PATH`` for tools that
    import TensorRT for RTX on their own, such as Polygraphy. Nothing else is in it; where the cache
    cannot be written, it lasts as long as this process.

    Returns
    -------
    Path or None
        None if the libraries do not come from the wheels, so need no links.
    """
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    if spec is None or spec.origin is None:
        return None
    source = Path(spec.origin).parent.resolve()
    if (source / "libtensorrt_rtx.so").exists():
        return source
    key = hashlib.sha256(str(source).encode()).hexdigest()[:16]
    libraries = sorted(source.glob("lib*.so.*"))
    links = {library.name: library for library in libraries}
    links |= {library.name.split(".so.")[0] + ".so": library for library in libraries}
    return link_folder(cache_directory() / "tensorrt-rtx-libs" / key, links)


def _find_module(name: FlavourName) -> str | None:
    for module_name in MODULES[name]:
        if module_name in sys.modules or importlib.util.find_spec(module_name) is not None:
            return module_name
    return None


def _preload_rtx() -> None:
    """Load the libraries from the link directory before the bindings load them.

    The parser searches its run path, which is the directory it was loaded from; a library that is
    already loaded keeps the directory of its first load, hence the order.
    """
    global _preloaded
    links = rtx_link_directory()
    if _preloaded or links is None:
        return
    loaded = _mapped_libraries("libtensorrt_onnxparser_rtx.so")
    if loaded:
        beside = loaded[0].parent / "libtensorrt_rtx.so"
        if not beside.exists() and not _opens(beside.name):
            raise BackendUnavailableError(
                "TensorRT for RTX was imported before rainfusion_trt could prepare it, and its "
                "parser cannot load plugins in that state: call "
                "rainfusion_trt.engine.flavour.load_tensorrt() first, or start the process with "
                f"LD_LIBRARY_PATH={links}"
            )
        return
    for stem in ("libtensorrt_rtx.so", "libtensorrt_onnxparser_rtx.so"):
        for library in sorted(links.glob(f"{stem}.*")):
            ctypes.CDLL(str(library))
    _preloaded = True


def _opens(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _mapped_libraries(stem: str) -> list[Path]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    fields = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    paths = {Path(field[5]) for field in fields if len(field) == 6}
    return sorted(path for path in paths if path.name.startswith(stem))


def _loaded_library(stem: str) -> Path:
    mapped = _mapped_libraries(stem)
    if not mapped:
        raise BackendUnavailableError(f"{stem} is not loaded although its module was imported")
    return mapped[0]
