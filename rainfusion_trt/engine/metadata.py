"""metadata.json beside engine.plan: describes an engine and what it was built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from rainfusion_trt.engine.flavour import FlavourName
from rainfusion_trt.engine.recipe import BuilderSettings, ShapeRange
from rainfusion_trt.errors import EngineLoadError
from rainfusion_trt.graph_file import FusedLora, GraphAccount, RecordedSettings, RecordedSize
from rainfusion_trt.hashing import file_sha256

ENGINE_FILE = "engine.plan"
METADATA_FILE = "metadata.json"
FORMAT: Final = "rainfusion-trt engine"
SCHEMA_VERSION: Final = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Record):
    """Content of one file of the ONNX model, with what tells that it has not changed since."""

    name: str
    size: int
    sha256: str
    mtime_ns: int
    ctime_ns: int
    inode: int


class TensorRecord(_Record):
    """An engine input or output.

    Attributes
    ----------
    name, dtype
        Name in the graph and torch's name of the element type.
    shape
        Extents, -1 where dynamic.
    profiles
        Shapes per optimisation profile, by its name; of inputs only.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    profiles: dict[str, ShapeRange] = {}


class PluginRecord(_Record):
    """The plugin library that the engine was built with."""

    file: str
    sha256: str
    build: str


class EngineMetadata(_Record):
    """The contents of metadata.json.

    Attributes
    ----------
    format
        Says that the folder was written by this package, which may then replace it.
    model, component, config, size, settings, loras, weights_sha256
        Registry name, which of its pipeline's transformers, transformer configuration, exported
        clip size, attention settings, what was added to the weights and their hashes, as the
        exporter wrote them into the ONNX file.
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
    model: str | None
    component: str = "transformer"
    config: dict[str, Any]
    size: RecordedSize
    settings: RecordedSettings
    loras: tuple[FusedLora, ...] = ()
    weights_sha256: dict[str, str] = {}
    precision: str
    flavour: FlavourName
    version: str
    targets: tuple[str, ...]
    device: str | None
    profiles: tuple[str, ...]
    builder: BuilderSettings
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    plugin: PluginRecord
    plugin_layers: int
    onnx: str
    onnx_sha256: str
    onnx_files: tuple[FileRecord, ...]
    key: str
    engine_size: int
    engine_sha256: str
    date: str
    build_seconds: float
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
            dynamic=not all(r.fixed for t in self.inputs for r in t.profiles.values()),
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
        A file is missing, the metadata cannot be read, or engine.plan is not the one it describes.
    """
    folder = Path(folder)
    metadata_file, plan = folder / METADATA_FILE, folder / ENGINE_FILE
    for file in (metadata_file, plan):
        if not file.is_file():
            raise EngineLoadError(
                f"{folder} is not an engine folder, it has no {file.name}: build one with "
                "`rainfusion-trt build-engine`"
            )
    try:
        metadata = EngineMetadata.model_validate_json(metadata_file.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise EngineLoadError(
            f"{metadata_file} cannot be read by this version of rainfusion-trt "
            f"({place}: {first['msg']}): build the engine again"
        ) from error
    size = plan.stat().st_size
    if size != metadata.engine_size:
        raise EngineLoadError(
            f"{plan} has {size} bytes, {METADATA_FILE} says {metadata.engine_size}: the file is "
            "damaged or belongs to another build; build the engine again"
        )
    if verify and file_sha256(plan) != metadata.engine_sha256:
        raise EngineLoadError(
            f"{plan} does not match the hash in {METADATA_FILE}: the file is damaged or belongs to "
            "another build; build the engine again"
        )
    return metadata


def save_metadata(folder: Path, metadata: EngineMetadata) -> None:
    """Write metadata.json; the caller renames the folder into place."""
    text = metadata.model_dump_json(indent=2)
    (folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
