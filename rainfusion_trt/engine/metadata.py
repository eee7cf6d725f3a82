"""metadata.json beside engine.plan: describes an engine and what it was built from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError

from rainfusion_trt.engine.flavour import FlavourName
from rainfusion_trt.engine.recipe import BuilderSettings, Name, Range, ShapeRange
from rainfusion_trt.engine.records import (
    Count,
    Date,
    FileRecord,
    Names,
    PluginRecord,
    Record,
    Sha256,
    Targets,
    TensorRecord,
    Version,
)
from rainfusion_trt.errors import EngineLoadError
from rainfusion_trt.field_errors import explain_fields
from rainfusion_trt.graph_file import (
    SHAPE_INPUTS,
    FusedLora,
    GraphAccount,
    RecordedSettings,
    RecordedSize,
)
from rainfusion_trt.hashing import file_sha256, json_sha256

__all__ = [
    "ENGINE_FILE",
    "METADATA_FILE",
    "EngineMetadata",
    "FileRecord",
    "PluginRecord",
    "TensorRecord",
    "load_metadata",
    "read_plan",
    "save_metadata",
]

ENGINE_FILE = "engine.plan"
METADATA_FILE = "metadata.json"
FORMAT: Final = "rainfusion-trt engine"
SCHEMA_VERSION: Final = 1
_OWN_HASH = "sha256"  # of all other fields, beside them in the file


class EngineMetadata(Record):
    """The contents of metadata.json.

    Attributes
    ----------
    format
        Says that the folder was written by this package, which may then replace it.
    model, component, config, size, settings, loras, weights_sha256
        Registry name, which of its pipeline's transformers, transformer configuration, exported
        clip size, attention settings, what was added to the weights and their hashes, as the
        exporter wrote them into the ONNX file.
    gpus
        How many GPUs may share a clip; None for an engine of one.
    precision
        Element type of weights and activations.
    flavour, version
        TensorRT that built the engine: ``tensorrt`` or ``tensorrt_rtx``, and its full version.
    targets
        Compute capabilities such as ``sm80``.
    device
        Name of the GPU it was built on, None when built for named targets.
    key
        Hash of everything that matters for the build.
    engine_size, engine_sha256
        Bytes and SHA-256 of engine.plan.
    """

    format: Literal["rainfusion-trt engine"] = FORMAT
    schema_version: Literal[1] = SCHEMA_VERSION
    model: Name | None
    component: Name = "transformer"
    config: dict[str, Any]
    size: RecordedSize
    settings: RecordedSettings
    loras: tuple[FusedLora, ...] = ()
    weights_sha256: dict[str, str] = {}
    gpus: Range | None = None
    precision: Literal["float16", "bfloat16"]
    flavour: FlavourName
    version: Version
    targets: Targets
    device: Name | None
    profiles: Names
    builder: BuilderSettings
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    plugin: PluginRecord
    plugin_layers: Count
    onnx: Name
    onnx_sha256: Sha256
    onnx_files: tuple[FileRecord, ...]
    key: Sha256
    engine_size: Count
    engine_sha256: Sha256
    date: Date
    build_seconds: Annotated[float, Field(ge=0.0)]
    command: str

    @property
    def account(self) -> GraphAccount:
        """The exported file's account of itself, as the engine keeps it."""
        return GraphAccount(
            model=self.model,
            component=self.component,
            config=self.config,
            size=self.size,
            dtype=self.precision,
            attention_nodes=self.plugin_layers,
            settings=self.settings,
            dynamic=not all(
                shapes.fixed
                for tensor in self.inputs
                if tensor.name not in SHAPE_INPUTS
                for shapes in tensor.profiles.values()
            ),
            parallel=self.gpus is not None,
            loras=self.loras,
            weights_sha256=self.weights_sha256,
        )


def load_metadata(folder: str | Path, *, verify: bool = True) -> EngineMetadata:
    """Read and check an engine folder.

    Parameters
    ----------
    folder : path
        Folder with engine.plan and metadata.json.
    verify : bool
        Also hash engine.plan (about a second per GB); its size is always compared.

    Raises
    ------
    EngineLoadError
        A file is missing, the metadata cannot be read or was changed, or engine.plan is not the one
        it describes.
    """
    folder = Path(folder)
    metadata_file, plan = folder / METADATA_FILE, folder / ENGINE_FILE
    for file in (metadata_file, plan):
        if not file.is_file():
            raise EngineLoadError(
                f"{folder} is not an engine folder, it has no {file.name}: build one with "
                "`rainfusion-trt build-engine`"
            )
    metadata = _parse(metadata_file)
    _check_size(plan, plan.stat().st_size, metadata)
    if verify:
        _check_hash(plan, file_sha256(plan), metadata)
    return metadata


def read_plan(folder: Path, metadata: EngineMetadata) -> bytes:
    """The engine in a folder, read once: what is returned is what was hashed.

    A map of the file would not do, since another process can change it after it was hashed.

    Raises
    ------
    EngineLoadError
        It is not the one that the metadata describes.
    """
    plan = folder / ENGINE_FILE
    content = plan.read_bytes()
    _check_size(plan, len(content), metadata)
    _check_hash(plan, hashlib.sha256(content).hexdigest(), metadata)
    return content


def save_metadata(folder: Path, metadata: EngineMetadata) -> None:
    """Write metadata.json; the caller renames the folder into place."""
    content = metadata.model_dump(mode="json")
    content[_OWN_HASH] = json_sha256(content)
    (folder / METADATA_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parse(file: Path) -> EngineMetadata:
    try:
        content = json.loads(file.read_bytes())
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        own_hash = content.pop(_OWN_HASH, None)
        metadata = EngineMetadata.model_validate_json(json.dumps(content))
        _check_tensors(metadata)
    except (ValueError, RecursionError) as error:  # pydantic's is a ValueError too
        raise EngineLoadError(
            f"{file} cannot be read by this version of rainfusion-trt ({_reason(error)}): build "
            "the engine again"
        ) from error
    if own_hash != json_sha256(content):
        raise EngineLoadError(
            f"{file} {'has no' if own_hash is None else 'does not match its'} hash of itself: it "
            "is of an older version or was changed since; build the engine again"
        )
    return metadata


def _reason(error: Exception) -> str:
    return explain_fields(error) if isinstance(error, ValidationError) else str(error)


def _check_tensors(metadata: EngineMetadata) -> None:
    """Raise ValueError unless inputs, outputs and profiles fit together."""
    if not metadata.inputs or not metadata.outputs:
        raise ValueError("an engine has inputs and outputs")
    names = [record.name for record in (*metadata.inputs, *metadata.outputs)]
    if len(set(names)) != len(names):
        raise ValueError("two tensors have one name")
    for record in (*metadata.inputs, *metadata.outputs):
        unknown = set(record.profiles).difference(metadata.profiles)
        if unknown:
            raise ValueError(f"{record.name} has an unknown profile {min(unknown)!r}")
    for record in metadata.inputs:
        missing = set(metadata.profiles).difference(record.profiles)
        if missing and (record.profiles or -1 in record.shape):
            raise ValueError(f"{record.name} has no shapes for the profile {min(missing)!r}")
        for name, shapes in record.profiles.items():
            if not _fits(record.shape, shapes):
                raise ValueError(f"{record.name} does not have the shapes of its profile {name!r}")


def _fits(declared: tuple[int, ...], shapes: ShapeRange) -> bool:
    return len(declared) == len(shapes.min) and all(
        fixed == -1 or fixed == low == high
        for fixed, low, high in zip(declared, shapes.min, shapes.max, strict=True)
    )


def _check_size(plan: Path, size: int, metadata: EngineMetadata) -> None:
    if size != metadata.engine_size:
        raise EngineLoadError(
            f"{plan} has {size} bytes, {METADATA_FILE} says {metadata.engine_size}: the file is "
            "damaged or belongs to another build; build the engine again"
        )


def _check_hash(plan: Path, sha256: str, metadata: EngineMetadata) -> None:
    if sha256 != metadata.engine_sha256:
        raise EngineLoadError(
            f"{plan} does not match the hash in {METADATA_FILE}: the file is damaged or belongs to "
            "another build; build the engine again"
        )
