"""An exported file's account of itself: written by the exporter, read by everybody."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    StrictInt,
    ValidationError,
)

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields
from rainfusion_trt.graph_file.names import METADATA_PREFIX
from rainfusion_trt.operator.settings import AttentionSettings

if TYPE_CHECKING:
    from rainfusion_trt.models.base import VideoSize

_TEXTS = frozenset(("model", "component", "size", "dtype", "version", "weights"))  # else JSON
_SIZE = re.compile(r"([1-9][0-9]{0,8})x([1-9][0-9]{0,8})x([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class FusedLora:
    """One LoRA that is part of the weights.

    Attributes
    ----------
    file
        Its name, without folder.
    scale
        The factor it was added with.
    sha256
        Hash of the file.
    layers
        Number of layers that it changed.
    """

    file: str
    scale: Annotated[float, Field(allow_inf_nan=False)]
    sha256: str
    layers: Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class DataFile:
    """The file beside a graph that holds its weights.

    Attributes
    ----------
    file
        Its name, as the graph has it.
    size, sha256
        Of its content.
    """

    file: str
    size: Annotated[int, Field(ge=0)]
    sha256: str


def _settings(value: Any) -> AttentionSettings | None:
    if value is None or value == {}:
        return None
    return value if isinstance(value, AttentionSettings) else AttentionSettings.from_record(value)


def _recorded(settings: AttentionSettings | None) -> dict[str, Any]:
    return {} if settings is None else settings.record()


def _size(text: str | None) -> str | None:
    if text is not None and not _SIZE.fullmatch(text):
        raise ValueError("not FRAMESxHEIGHTxWIDTH")
    return text


RecordedSettings = Annotated[
    AttentionSettings | None, PlainValidator(_settings), PlainSerializer(_recorded)
]
"""Settings of a whole model; None, in JSON an empty object, where nothing says them."""

RecordedSize = Annotated[str | None, AfterValidator(_size)]
"""Clip size as ``"49x480x720"``: frames, height and width."""


class GraphAccount(BaseModel):
    """An exported file's account of itself, in its metadata.

    Every field may be missing: other programs write files with our nodes too.

    Attributes
    ----------
    model, component
        Registry name, or a class's name, and which of its pipeline's transformers.
    config
        Configuration of the transformer; empty for a module outside the registry.
    size
        Clip it was exported for.
    dtype
        Element type of its attention, such as ``"float16"``.
    attention_nodes
        Number of RainFusionAttention nodes that it was written with.
    settings
        Attention settings of all nodes.
    dynamic
        Whether it takes other sizes.
    parallel
        Whether several GPUs can share a clip.
    loras
        LoRAs that were added to its weights.
    weights
        "none" where only the graph was written.
    data
        The file beside it that holds the weights it was written with; None where they are inside,
        and in files of 0.2 and older.
    weights_sha256
        Hashes of its weights, see `rainfusion_trt.weights_hash`; files of version 0.2 have none.
    version
        Version of this package, which wrote it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = None
    component: str = "transformer"
    config: dict[str, Any] = {}
    size: RecordedSize = None
    dtype: str | None = None
    attention_nodes: Annotated[StrictInt, Field(ge=0)] | None = None
    settings: RecordedSettings = None
    dynamic: StrictBool = False
    parallel: StrictBool = False
    loras: tuple[FusedLora, ...] = ()
    weights: Literal["none"] | None = None
    data: DataFile | None = None
    weights_sha256: dict[str, str] = {}
    version: str | None = None

    @property
    def clip(self) -> VideoSize | None:
        """The clip it was exported for."""
        return parse_size(self.size)

    def check_data(
        self, origin: Path, name: str, *, size: int | None = None, sha256: str | None = None
    ) -> None:
        """Refuse a weights file that is not the one the graph was written with.

        Parameters
        ----------
        origin
            The graph's file, for the message.
        name
            The weights file, as the graph has it. Nothing is known of one that it was not written
            with: another program has moved the weights then.
        size, sha256
            Of what lies there now, as far as known.

        Raises
        ------
        InvalidInputError
            They are not those of the account.
        """
        data = self.data
        if data is None or data.file != name:
            return
        if size not in (None, data.size):
            how = f"has {size} bytes instead of {data.size}"
        elif sha256 not in (None, data.sha256):
            how = "does not have the hash that the graph names"
        else:
            return
        raise InvalidInputError(
            f"{origin}: its weights file {name} {how}, so it is of another export or was changed "
            "since: copy both files of one export together, or export the model again"
        )

    def to_metadata(self) -> dict[str, str]:
        """Metadata of the ONNX file; what nobody set is left out."""
        said = {k: v for k, v in self.model_dump(exclude_unset=True).items() if _is_said(v)}
        return {
            METADATA_PREFIX + name: value if name in _TEXTS else json.dumps(value, sort_keys=True)
            for name, value in said.items()
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str], origin: str | Path) -> GraphAccount:
        """Read an ONNX file's metadata, other programs' entries left aside.

        Parameters
        ----------
        metadata
            Key -> text.
        origin
            The file, for the message of an error.

        Raises
        ------
        InvalidInputError
            An entry does not hold what it must; the message names its key.
        """
        found = {}
        for name in cls.model_fields:
            text = metadata.get(METADATA_PREFIX + name)
            if text is not None:
                found[name] = text if name in _TEXTS else _from_json(name, text, origin)
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            reason = explain_fields(error, prefix=METADATA_PREFIX)
            raise InvalidInputError(f"{origin}: metadata {reason}: export it again") from error


def _is_said(value: Any) -> bool:
    return value is not None and value not in ([], (), {})


def _from_json(name: str, text: str, origin: str | Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits
        raise InvalidInputError(
            f"{origin}: metadata {METADATA_PREFIX}{name} is not JSON ({error}): export it again"
        ) from error


def parse_size(text: str | None) -> VideoSize | None:
    """``"49x480x720"`` as a VideoSize; None if there is none."""
    if not text:
        return None
    from rainfusion_trt.models.base import VideoSize

    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidInputError(f"size {text!r} is not FRAMESxHEIGHTxWIDTH")
    return VideoSize(*map(int, match.groups()))
