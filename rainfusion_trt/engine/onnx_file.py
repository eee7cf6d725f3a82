"""What the builder must know about an exported ONNX file before TensorRT opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError, UnsupportedError

if TYPE_CHECKING:
    import onnx

DOMAIN = "rainfusion"
OP_TYPE = "RainFusionAttention"
PLUGIN_ATTRIBUTES = {"plugin_namespace": "rainfusion", "plugin_version": "1"}
HEAD_SIZES = (64, 96, 128)  # head sizes with a kernel
PRECISIONS = ("float16", "bfloat16")


@dataclass(frozen=True)
class GraphTensor:
    """A graph input or output; dynamic extents are names, unknown ones None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...]

    @property
    def dynamic(self) -> bool:
        return any(not isinstance(extent, int) for extent in self.shape)


@dataclass(frozen=True)
class OnnxFile:
    """Facts read from an ONNX file without its weights.

    Attributes
    ----------
    path
        The ``.onnx`` file.
    data_files
        Files with external weights, relative to its folder.
    inputs, outputs
        Graph inputs and outputs in graph order.
    attention_nodes
        Names of the RainFusionAttention nodes.
    attention_dtype
        Element type of their queries where the file says it, else None.
    properties
        The exporter's ``rainfusion.*`` metadata, without the prefix.
    """

    path: Path
    data_files: tuple[str, ...]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    attention_nodes: tuple[str, ...]
    attention_dtype: str | None
    properties: dict[str, str] = field(default_factory=dict)

    @property
    def model(self) -> str | None:
        """Registry name of the model, None for a file that this exporter did not write."""
        return self.properties.get("model")

    @property
    def precision(self) -> str | None:
        """Element type of weights and activations, None if the file does not say."""
        return self.properties.get("dtype") or self.attention_dtype

    def json_property(self, key: str) -> dict[str, Any]:
        """A property that holds a JSON object; empty if absent."""
        value = self._json(key, "{}")
        return value if isinstance(value, dict) else {key: value}

    def json_list(self, key: str) -> list[Any]:
        """A property that holds a JSON array; empty if absent."""
        value = self._json(key, "[]")
        return value if isinstance(value, list) else [value]

    def _json(self, key: str, absent: str) -> Any:
        try:
            return json.loads(self.properties.get(key, absent))
        except json.JSONDecodeError as error:
            raise InvalidInputError(
                f"{self.path}: metadata rainfusion.{key} is not JSON ({error}): export it again"
            ) from error


def read_onnx(path: str | Path) -> OnnxFile:
    """Read and check an exported model; weights stay on disk.

    Raises
    ------
    InvalidInputError
        The file is missing, corrupt, lacks external data, holds no RainFusionAttention node, or one
        of its nodes lacks the attributes by which TensorRT finds the plugin.
    UnsupportedError
        A head size or an element type without a kernel.
    BackendUnavailableError
        The ``onnx`` package is not installed.
    """
    path = Path(path)
    model = _load(path)
    nodes = [n for n in model.graph.node if n.domain == DOMAIN and n.op_type == OP_TYPE]
    properties = {
        entry.key.removeprefix("rainfusion."): entry.value
        for entry in model.metadata_props
        if entry.key.startswith("rainfusion.")
    }
    _check_nodes(path, nodes, properties)
    values = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
    queries = [_graph_tensor(values[n.input[0]]) for n in nodes if n.input[0] in values]
    weights = {tensor.name for tensor in model.graph.initializer}
    file = OnnxFile(
        path=path,
        data_files=_data_files(path, model),
        inputs=tuple(_graph_tensor(v) for v in model.graph.input if v.name not in weights),
        outputs=tuple(_graph_tensor(v) for v in model.graph.output),
        attention_nodes=tuple(node.name or node.output[0] for node in nodes),
        attention_dtype=queries[0].dtype if queries else None,
        properties=properties,
    )
    _check_kernels(file, queries)
    return file


def _load(path: Path) -> onnx.ModelProto:
    try:
        import onnx
        from google.protobuf.message import DecodeError
    except ImportError as error:
        raise BackendUnavailableError(
            f"building an engine reads the model with the `onnx` package ({error}): "
            "pip install onnx"
        ) from error
    if not path.is_file():
        raise InvalidInputError(f"no ONNX file at {path}: write one with rainfusion-trt export")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError as error:
        raise InvalidInputError(
            f"{path} is not a readable ONNX file ({error}): export the model again"
        ) from error
    if not model.graph.node:
        raise InvalidInputError(f"{path} holds no graph: export the model again")
    return model


def _check_nodes(path: Path, nodes: list[onnx.NodeProto], properties: dict[str, str]) -> None:
    if not nodes:
        raise InvalidInputError(
            f"{path} holds no {DOMAIN}::{OP_TYPE} node: export the model with rainfusion-trt export"
        )
    for node in nodes:
        found = {attribute.name: attribute.s.decode() for attribute in node.attribute}
        for name, expected in PLUGIN_ATTRIBUTES.items():
            if found.get(name) != expected:
                raise InvalidInputError(
                    f"{path}: node {node.name or node.output[0]!r} has {name}="
                    f"{found.get(name)!r} instead of {expected!r}, so TensorRT would take its "
                    "dense body instead of the plugin: export the model again"
                )
    expected_count = properties.get("attention_nodes")
    if expected_count is not None and int(expected_count) != len(nodes):
        raise InvalidInputError(
            f"{path} holds {len(nodes)} {OP_TYPE} nodes, its metadata says {expected_count}: "
            "the file was changed after the export; export the model again"
        )


def _check_kernels(file: OnnxFile, queries: list[GraphTensor]) -> None:
    sizes = [query.shape[-1] for query in queries if len(query.shape) == 4]
    sizes.append(file.json_property("config").get("attention_head_dim"))
    for size in sizes:
        if isinstance(size, int) and size not in HEAD_SIZES:
            raise UnsupportedError(
                f"{file.path}: head size {size} has no kernel; supported head sizes are "
                f"{', '.join(map(str, HEAD_SIZES))}"
            )
    if file.precision is not None and file.precision not in PRECISIONS:
        raise UnsupportedError(
            f"{file.path} is in {file.precision}; the plugin computes in float16 and bfloat16: "
            "export the model with --dtype fp16 or --dtype bf16"
        )


def _graph_tensor(value: onnx.ValueInfoProto) -> GraphTensor:
    import onnx

    tensor = value.type.tensor_type
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None
        for dim in tensor.shape.dim
    )
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return GraphTensor(
        value.name, {"float": "float32", "double": "float64"}.get(dtype, dtype), shape
    )


def _data_files(path: Path, model: onnx.ModelProto) -> tuple[str, ...]:
    """External data files; raises if one is missing or shorter than the model says."""
    needed: dict[str, int] = {}
    for tensor in _tensors(model):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in entries:
            end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
            needed[entries["location"]] = max(end, needed.get(entries["location"], 0))
    for name, size in needed.items():
        file = path.parent / name
        actual = file.stat().st_size if file.is_file() else None
        if actual is None or actual < size:
            state = "is missing" if actual is None else f"has {actual} of {size} bytes"
            raise InvalidInputError(
                f"{path}: its weights file {file} {state}: export the model again, or copy both "
                "files together"
            )
    return tuple(sorted(needed))


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
