"""Write results of benchmarks as JSON. Every figure in the docs comes from such a file."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.operator.native import load_library

RESULTS = Path(__file__).resolve().parent / "results"
_PACKAGES = ("diffusers", "tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "triton")


def environment() -> dict[str, Any]:
    """Device and versions that a figure depends on."""
    versions: dict[str, Any] = {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            module = sys.modules.get(package)
            if module is not None:
                versions[package] = module.__version__
    with contextlib.suppress(RainFusionError):  # results of the reference need no library
        versions["rainfusion"] = load_library().build_info
    device = "cpu"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
        versions["cuda"] = torch.version.cuda
        versions["cudnn"] = torch.backends.cudnn.version()
    return {"device": device, "versions": versions}


def _without_folder(argument: str) -> str:
    """The name of a folder, which is enough: its path means nothing on another machine."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def _command() -> str:
    """The command of this process as a reader would repeat it."""
    words = ["python"]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        words = ["torchrun", "--nproc-per-node", os.environ["LOCAL_WORLD_SIZE"]]
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None:
        words.append(_without_folder(sys.argv[0]))
    else:
        words += ["-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*words, *map(_without_folder, sys.argv[1:])])


def write_result(
    name: str,
    rows: Iterable[dict[str, Any]],
    *,
    note: str = "",
    facts: Mapping[str, Any] | None = None,
    folder: Path | None = None,
) -> Path:
    """Write ``<folder>/<name>.json``: device, date, command, versions and rows.

    Parameters
    ----------
    name
        File name without its ending.
    rows
        One flat dictionary a measurement.
    note
        Facts about the set-up that a reader must know.
    facts
        Other facts that hold for all rows, by name.
    folder
        Default ``benchmarks/results``.
    """
    folder = RESULTS if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "name": name,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
        "command": _command(),
        "note": note,
        **environment(),
        **(facts or {}),
        "rows": list(rows),
    }
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    with os.fdopen(handle, "w") as file:
        json.dump(record, file, indent=1)
        file.write("\n")
    path = folder / f"{name}.json"
    Path(temporary).replace(path)
    return path
