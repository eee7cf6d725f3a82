"""A process with the lean runtime of a TensorRT, whose registry gets the plugin library.

``python lean_runtime.py FOLDER LIBRARY``: FOLDER holds the wheels. Prints as JSON what the registry
says; what the plugin logs goes to stderr, since a runtime has no logger where it finds no GPU.
``python lean_runtime.py FOLDER LIBRARY SHIM`` has SHIM register the plugin.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_HEADER = Path(__file__).parents[2] / "plugins" / "include" / "rainfusion" / "rainfusion.h"
LAYOUT = int(re.findall(r"define RAINFUSION_WORKSPACE_LAYOUT (\d+)", _HEADER.read_text())[0])
IDENTITY = ("RainFusionAttention", "1", "rainfusion")
GOOD = {"text": "last", "method": "rainfusion_plus", "alpha": 0.75, "sink_frames": 2, "scale": 0.1}
SAVED = {"engine_layout": LAYOUT, "workspace_bytes": np.int64(1 << 20)}
# What is wrong with an attribute, by the words of the error.
BAD: dict[str, dict[str, Any]] = {
    "attribute 'text' is 'middle'": {"text": "middle"},
    "attribute 'text' must be a string": {"text": 1},
    "attribute 'method' is 'fast'": {"method": "fast"},
    "attribute 'method' must be a string": {"method": 0.5},
    "attribute 'precision' is '4bit'": {"precision": "4bit"},
    "attribute 'precision' must be a string": {"precision": 8},
    "attribute 'last_sink_frames' is -1": {"last_sink_frames": -1},
    "attribute 'last_sink_frames' must be an integer": {"last_sink_frames": 1.0},
    "attribute 'exact_frames' has 3 numbers": {"exact_frames": np.int32([3, 4, 6])},
    "attribute 'exact_frames' is -1": {"exact_frames": np.int32([-1, 2])},
    "attribute 'exact_frames' must be an integer": {"exact_frames": np.float32([1, 2])},
    "attribute 'alpha' is 1.5": {"alpha": 1.5},
    "attribute 'alpha' must be a float": {"alpha": "0.9"},
    "attribute 'alpha' must be finite": {"alpha": float("nan")},
    "attribute 'sink_frames' is -1": {"sink_frames": -1},
    "attribute 'sink_frames' must be an integer": {"sink_frames": 1.0},
    "attribute 'scale' is -2": {"scale": -2.0},
    "attribute 'scale' must be one number": {"scale": np.float32([1, 2])},
    "attribute 'sparsity' is unknown": {"sparsity": 0.5},
}
BAD_SAVED: dict[str, dict[str, Any]] = {
    "library of layout 0": {"engine_layout": 0},
    f"library of layout {LAYOUT + 1}": {"engine_layout": LAYOUT + 1},
    "workspace_bytes = 0": {"workspace_bytes": np.int64(0)},
}


def load(folder: Path) -> ModuleType:
    """The bindings, which find the library only if it is loaded."""
    (library,) = (folder / "tensorrt_lean_libs").glob("libnvinfer_lean.so.*")
    ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    sys.path.insert(0, str(folder))
    import tensorrt_lean_bindings as trt

    return trt


def collection(trt: ModuleType, values: dict[str, Any]) -> Any:
    """Fields of an attribute each, of the type that the value has."""
    fields = []
    for name, value in values.items():
        if isinstance(value, str):
            field = trt.PluginField(name, value.encode(), trt.PluginFieldType.CHAR)
        else:
            numbers = np.atleast_1d(value)
            if numbers.dtype == np.int64 and not isinstance(value, np.int64):
                numbers = numbers.astype(np.int32)
            elif numbers.dtype == np.float64:
                numbers = numbers.astype(np.float32)
            kind = getattr(trt.PluginFieldType, str(numbers.dtype).upper())
            field = trt.PluginField(name, numbers, kind)
        fields.append(field)
    return trt.PluginFieldCollection(fields)


def inspect(trt: ModuleType, library: str) -> dict[str, Any]:
    """What the registry has, and what its creator makes of fields."""
    registry = trt.get_plugin_registry()
    build, run = trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME

    def found() -> bool:
        return registry.get_creator(*IDENTITY) is not None

    def made(values: dict[str, Any], phase: Any) -> bool:
        creator = registry.get_creator(*IDENTITY)
        return creator.create_plugin("layer", collection(trt, values), phase) is not None

    present = [found()]
    handle = registry.load_library(library)
    present.append(found())
    creators = [(c.name, c.plugin_version, c.plugin_namespace) for c in registry.all_creators]
    fields = registry.get_creator(*IDENTITY).field_names
    answer = {
        "version": trt.__version__,
        "creators": [creator for creator in creators if creator[2] == IDENTITY[2]],
        "fields": [(f.name, f.type.name, f.size) for f in fields],
        "made": [made({}, build), made(GOOD, build), made({**GOOD, **SAVED}, run)],
        "without a layout": made(GOOD, run),
        "made of bad fields": [
            [made(bad, build), made({**bad, **SAVED}, run)] for bad in BAD.values()
        ]
        + [[made({**GOOD, **SAVED, **bad}, run)] for bad in BAD_SAVED.values()],
    }
    registry.deregister_library(handle)
    present.append(found())
    registry.load_library(library)
    present.append(found())
    answer["again"] = made(GOOD, build)
    return {**answer, "present": present}


def main(folder: str, library: str, shim: str = "") -> None:
    trt = load(Path(folder))
    if not shim:
        answer = inspect(trt, library)
    else:
        ctypes.CDLL(shim)
        answer = {"registered": trt.get_plugin_registry().get_creator(*IDENTITY) is not None}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
