"""Reads an ONNX file: its account, its tensors, its attentions, and the weights beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.graph_file.account import GraphAccount
from rainfusion_trt.graph_file.names import BITS_INPUT, is_attention
from rainfusion_trt.graph_file.nodes import text_of
from rainfusion_trt.hashing import kept_sha256

if TYPE_CHECKING:
    import onnx

_LONGEST_NAME = 255  # bytes, of a file system
_MOST_DIGITS = 19  # of a 64-bit integer


@dataclass(frozen=True)
class GraphTensor:
    """A graph input or output; dynamic extents are names, unknown ones None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def dynamic(self) -> bool:
        return any(not isinstance(extent, int) for extent in self.shape)

    @classmethod
    def of(cls, value: onnx.ValueInfoProto) -> GraphTensor:
        """An input, output or value of an ONNX graph."""
        import onnx

        tensor = value.type.tensor_type
        shape = tuple(
            dim.dim_value if dim.HasField("dim_value") else text_of(dim.dim_param) or None
            for dim in tensor.shape.dim
        )
        names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        names |= {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.DOUBLE: "float64"}
        dtype = names.get(tensor.elem_type, f"type {tensor.elem_type}")
        return cls(text_of(value.name), dtype, shape)


@dataclass(frozen=True)
class GraphFile:
    """An ONNX file as read, without weights that lie beside it.

    Attributes
    ----------
    path
        The ``.onnx`` file.
    account
        Its account of itself; empty where another program wrote it.
    proto
        Its content.
    """

    path: Path
    account: GraphAccount
    proto: onnx.ModelProto

    @property
    def inputs(self) -> tuple[GraphTensor, ...]:
        """Graph inputs in graph order, without weights."""
        weights = {tensor.name for tensor in self.proto.graph.initializer}
        return tuple(GraphTensor.of(v) for v in self.proto.graph.input if v.name not in weights)

    @property
    def outputs(self) -> tuple[GraphTensor, ...]:
        """Graph outputs in graph order."""
        return tuple(GraphTensor.of(value) for value in self.proto.graph.output)

    @property
    def attentions(self) -> list[onnx.NodeProto]:
        """Its RainFusionAttention nodes."""
        return [node for node in self.proto.graph.node if is_attention(node)]

    @property
    def has_bits(self) -> bool:
        """Whether it has the input by which a call of a graph of 8 bits says its precision."""
        return any(value.name == BITS_INPUT for value in self.proto.graph.input)

    @property
    def shapes(self) -> dict[str | bytes, tuple[int | str | None, ...]]:
        """Shapes of its values, as far as it says them."""
        graph = self.proto.graph
        infos = (*graph.value_info, *graph.input, *graph.output)
        known = {value.name: GraphTensor.of(value).shape for value in infos}
        return {**known, **{tensor.name: tuple(tensor.dims) for tensor in graph.initializer}}

    @property
    def data_files(self) -> dict[str, int]:
        """Files with weights beside it, relative to its folder -> bytes each must have.

        Raises
        ------
        InvalidInputError
            One lies elsewhere, or a place in it is none.
        """
        needed: dict[str, int] = {}
        for tensor in _tensors(self.proto):
            entries = {entry.key: entry.value for entry in tensor.external_data}
            if "location" in entries:
                name, end = self._place(entries)
                needed[name] = max(end, needed.get(name, 0))
        return dict(sorted(needed.items()))

    def _place(self, entries: Mapping[str, str]) -> tuple[str, int]:
        """The file of one tensor, and where in it the tensor ends."""
        name = text_of(entries["location"])
        offset, length = (text_of(entries.get(key, "0")) for key in ("offset", "length"))
        inside = name and not PurePath(name).is_absolute() and ".." not in PurePath(name).parts
        possible = "\0" not in name and len(os.fsencode(name)) <= _LONGEST_NAME
        counts = all(text.isdecimal() and len(text) <= _MOST_DIGITS for text in (offset, length))
        if inside and possible and counts:
            return name, int(offset) + int(length)
        offset, length = offset[: _MOST_DIGITS + 1], length[: _MOST_DIGITS + 1]
        raise InvalidInputError(
            f"{self.path} keeps weights in {name[:_LONGEST_NAME]!r} at {offset}, {length} bytes: "
            "only a place in a file beside it is read; export the model again"
        )

    def check_data_files(self) -> None:
        """Raise InvalidInputError if one is missing, too short or of another size than written."""
        for name, size in self.data_files.items():
            data = self.path.parent / name
            actual = data.stat().st_size if data.is_file() else None
            if actual is None or actual < size:
                state = "is missing" if actual is None else f"has {actual} of {size} bytes"
                raise InvalidInputError(
                    f"{self.path}: its weights file {data} {state}: export the model again, or "
                    "copy both files together"
                )
            self.account.check_data(self.path, name, size=actual)

    def verify_data(self) -> None:
        """Check the files beside it by size and content; a second a GB, once in a process."""
        self.check_data_files()
        if self.account.data is not None:
            for name in self.data_files:
                sha256 = kept_sha256(self.path.parent / name)
                self.account.check_data(self.path, name, sha256=sha256)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Any) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs):
                yield from _graph_tensors(graph)


def read_onnx(path: str | Path) -> GraphFile:
    """Read an ONNX file; weights beside it stay on disk.

    Raises
    ------
    InvalidInputError
        The file is missing, no ONNX or without a graph, or its metadata does not hold what it must.
    BackendUnavailableError
        The ``onnx`` package is not installed.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise BackendUnavailableError(
            f"exported models are read with the `onnx` package ({error}): pip install onnx"
        ) from error
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"no ONNX file at {path}: write one with rainfusion-trt export")
    try:
        # Its suffix would choose another format.
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise InvalidInputError(
            f"{path} is not a readable ONNX file, onnx refuses it ({error}): export it again"
        ) from error
    if not proto.graph.node:
        raise InvalidInputError(f"{path} holds no graph: export it again")
    metadata = {text_of(entry.key): text_of(entry.value) for entry in proto.metadata_props}
    return GraphFile(path, GraphAccount.from_metadata(metadata, path), proto)
