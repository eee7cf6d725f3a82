"""Reads what the builder needs from an exported ONNX file before TensorRT opens it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import (
    DOMAIN,
    GATHER_OP_TYPE,
    OP_TYPE,
    OP_VERSION,
    SPLIT_OP_TYPE,
    GraphAccount,
    GraphFile,
    GraphTensor,
    check_attention,
    check_plugin,
    is_of_tokens,
    name_of,
    read_onnx,
    text_of,
)

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class OnnxFile:
    """Facts of an ONNX file, without its content.

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
    queries
        Their first inputs, as far as the file says what these are.
    account
        Its account of itself; empty where this exporter did not write it.
    token_nodes
        Names of the nodes that cut the tokens for several GPUs, or put them together.
    eight_bit
        Whether its attentions may compute in 8 bits.
    """

    path: Path
    data_files: tuple[str, ...]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    attention_nodes: tuple[str, ...]
    queries: tuple[GraphTensor, ...]
    account: GraphAccount = GraphAccount()
    token_nodes: tuple[str, ...] = ()
    eight_bit: bool = False

    @property
    def precision(self) -> str | None:
        """Element type of weights and activations, None if the file does not say."""
        return self.account.dtype or (self.queries[0].dtype if self.queries else None)

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """Head sizes of its attentions, as far as the file says them."""
        sizes = [query.shape[-1] for query in self.queries if len(query.shape) == 4]
        sizes.append(self.account.config.get("attention_head_dim"))
        return tuple(dict.fromkeys(size for size in sizes if isinstance(size, int)))

    def check_sha256(self, hashes: Mapping[str, str]) -> None:
        """Raise InvalidInputError for weights files that the graph was not written with.

        Parameters
        ----------
        hashes
            File name -> its SHA-256 now.
        """
        for name in self.data_files:
            self.account.check_data(self.path, name, sha256=hashes[name])


def read_for_build(path: str | Path) -> OnnxFile:
    """Read an exported model and check that TensorRT will find the plugin; weights stay on disk.

    The build compares their hash, which it needs anyway, by :meth:`OnnxFile.check_sha256`.

    Raises
    ------
    InvalidInputError
        The file is missing, corrupt or cut off, is of an unknown version, lacks external data or
        has that of another export by its size, holds no RainFusionAttention node, or one of its
        nodes does not say what it has to.
    BackendUnavailableError
        The ``onnx`` package is not installed.
    """
    file = read_onnx(path)
    _check_opsets(file)
    nodes = file.attentions
    eight_bit = _check_nodes(file, nodes)
    file.check_data_files()
    graph = file.proto.graph
    values = {value.name: value for value in (*graph.value_info, *graph.input)}
    queries = [values[node.input[0]] for node in nodes if node.input[0] in values]
    return OnnxFile(
        path=file.path,
        data_files=tuple(file.data_files),
        inputs=file.inputs,
        outputs=file.outputs,
        attention_nodes=tuple(name_of(node) for node in nodes),
        queries=tuple(GraphTensor.of(query) for query in queries),
        account=file.account,
        token_nodes=_token_nodes(file),
        eight_bit=eight_bit,
    )


def _token_nodes(file: GraphFile) -> tuple[str, ...]:
    """Names of the nodes around the blocks, each of which TensorRT finds the plugin of."""
    nodes = [node for node in file.proto.graph.node if is_of_tokens(node)]
    kinds = {node.op_type for node in nodes}
    parallel = any(a.name == "parallel" and a.i for n in file.attentions for a in n.attribute)
    whole = kinds == {SPLIT_OP_TYPE, GATHER_OP_TYPE} and parallel
    if (nodes or parallel or file.account.parallel) and not (whole and file.account.parallel):
        raise InvalidInputError(
            f"{file.path} is for several GPUs in a part of its nodes alone: export the model again"
        )
    for node in nodes:
        check_plugin(node, file.path)
    return tuple(name_of(node) for node in nodes)


def _check_opsets(file: GraphFile) -> None:
    """Refuse operators of a version that nobody here knows, and a file that ends too early."""
    import onnx

    versions = {text_of(opset.domain): opset.version for opset in file.proto.opset_import}
    known = {"": range(1, onnx.defs.onnx_opset_version() + 1), DOMAIN: (OP_VERSION,)}
    for domain, good in known.items():
        found = versions.get(domain)
        if found not in good:
            raise InvalidInputError(
                f"{file.path} has version {found} of the operators of {domain or 'ONNX'!r}, known "
                f"here is {good[0]}{f' to {good[-1]}' if len(good) > 1 else ''}: export the model "
                "again"
            )
    bodies = {(text_of(f.domain), text_of(f.name)) for f in file.proto.functions}
    if file.attentions and (DOMAIN, OP_TYPE) not in bodies:
        raise InvalidInputError(
            f"{file.path} has no body of {OP_TYPE}, which stands at its end: the file is "
            "incomplete; copy it anew, or export the model again"
        )


def _check_nodes(file: GraphFile, nodes: list[onnx.NodeProto]) -> bool:
    """Check every attention; whether they are of 8 bits."""
    path, expected_count = file.path, file.account.attention_nodes
    if not nodes:
        raise InvalidInputError(
            f"{path} holds no {DOMAIN}::{OP_TYPE} node: export the model with rainfusion-trt export"
        )
    shapes = file.shapes
    precisions = {check_attention(node, path, shapes).precision for node in nodes}
    if expected_count is not None and expected_count != len(nodes):
        raise InvalidInputError(
            f"{path} holds {len(nodes)} {OP_TYPE} nodes, its metadata says {expected_count}: "
            "the file was changed after the export; export the model again"
        )
    said = file.account.settings
    agree = len(precisions) == 1 and (said is None or {said.precision} == precisions)
    eight_bit = precisions == {"8bit"}
    if not agree or file.has_bits != eight_bit:
        raise InvalidInputError(
            f"{path} is of 8 bits in a part of its nodes, its inputs and its metadata alone: "
            "export the model again"
        )
    return eight_bit
