"""What engines and ONNX files say about themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rainfusion_trt.errors import EngineLoadError, InvalidInputError
from rainfusion_trt.models.base import VideoSize
from rainfusion_trt.operator.settings import AttentionSettings


@dataclass(frozen=True)
class Graph:
    """An engine's or an ONNX file's own account of itself.

    Attributes
    ----------
    origin
        The engine or file, in words.
    model, component
        Registry name, and which of its pipeline's transformers.
    config, settings
        Of the transformer and of its attention; no settings where nothing says them.
    size, dynamic
        Clip it was exported for, and whether it takes others.
    flavour
        TensorRT that built it; None for an ONNX file.
    """

    origin: str
    model: str
    component: str
    config: dict[str, Any]
    size: VideoSize | None
    dynamic: bool
    settings: AttentionSettings | None
    flavour: str | None = None

    def check_settings(self, given: dict[str, Any]) -> None:
        """Raise InvalidInputError where another setting is asked for than it was exported with."""
        for name, value in given.items():
            fixed = getattr(self.settings, name, value)
            if fixed != value:
                raise InvalidInputError(
                    f"{name}={value!r} was asked for, but {self.origin} was exported with "
                    f"{name}={fixed!r}: leave it out, or export again"
                )


def read_engine(path: str | Path) -> Graph:
    """The account in an engine folder's metadata.json.

    Raises
    ------
    EngineLoadError
        The folder is missing or damaged, or does not say which model it is.
    """
    from rainfusion_trt.engine import load_metadata

    found = load_metadata(path, verify=False)
    if found.model is None:
        raise EngineLoadError(
            f"{path} does not say which model it is: export it with rainfusion-trt export"
        )
    return Graph(
        origin=f"the engine {path}",
        model=found.model,
        component=found.component,
        config=found.config,
        size=parse_size(found.size),
        dynamic=not all(r.fixed for t in found.inputs for r in t.profiles.values()),
        settings=_settings(found.settings),
        flavour=found.flavour,
    )


def read_onnx(path: str | Path) -> Graph:
    """The exporter's account in an ONNX file's metadata, without reading its weights.

    Raises
    ------
    InvalidInputError
        No such file, no ONNX, or not written by this project's exporter.
    """
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"no ONNX file at {path}: write one with rainfusion-trt export")
    try:
        graph = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InvalidInputError(f"{path} is not a readable ONNX file: export it again") from error
    found = {entry.key: entry.value for entry in graph.metadata_props}
    if "rainfusion.model" not in found or "rainfusion.config" not in found:
        raise InvalidInputError(
            f"{path} has no rainfusion.model and rainfusion.config in its metadata: "
            "export the model with rainfusion-trt export"
        )
    return Graph(
        origin=f"the ONNX file {path}",
        model=found["rainfusion.model"],
        component=found.get("rainfusion.component", "transformer"),
        config=json.loads(found["rainfusion.config"]),
        size=parse_size(found.get("rainfusion.size")),
        dynamic=found.get("rainfusion.dynamic") == "true",
        settings=_settings(json.loads(found.get("rainfusion.settings", "{}"))),
    )


def _settings(record: dict[str, Any]) -> AttentionSettings | None:
    return AttentionSettings.from_record(record) if record else None


def parse_size(text: str | None) -> VideoSize | None:
    """``"49x480x720"`` as a VideoSize; None if there is none."""
    if not text:
        return None
    try:
        frames, height, width = (int(part) for part in text.split("x"))
    except ValueError as error:
        raise InvalidInputError(f"size {text!r} is not FRAMESxHEIGHTxWIDTH") from error
    return VideoSize(frames, height, width)
