"""Writes a model and its weights, so that the file is complete or absent."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.place import check_file
from rainfusion_trt.files.seal import DIGITS, Seal
from rainfusion_trt.files.staging import remove_leftovers, staging
from rainfusion_trt.graph_file import METADATA_PREFIX, DataFile, GraphAccount, read_onnx
from rainfusion_trt.hashing import file_sha256, kept_sha256

EMBEDDED_BYTES = 1_500_000_000  # protobuf's limit is 2 GiB
Progress = Callable[[int, int], None]  # bytes written, bytes in total
WeightsPlace = Literal["inside", "beside", "none"]


def _seal() -> Seal:
    """One more entry of the graph's metadata: protobuf reads appended fields as if they had been
    there, and programs that write the graph again put them elsewhere.
    """
    entry = onnx.StringStringEntryProto(key=f"{METADATA_PREFIX}seal", value="0" * DIGITS)
    model = onnx.ModelProto(metadata_props=[entry])
    return Seal(model.SerializeToString()[:-DIGITS])


SEAL = _seal()


def initial_values(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Tensors of the graph's initializers by name, including any that were left out."""
    tensors = {}
    for name, value in model.graph.initializers.items():
        assert value.const_value is not None  # a graph registers no initializer without one
        tensors[name] = value.const_value
    return tensors


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights, including any that were left out."""
    return sum(tensor.nbytes for tensor in initial_values(model).values())


def weights_place(model: ir.Model) -> WeightsPlace:
    """The place that :func:`write` gives the weights: "none" if left out, else by their size."""
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in initial_values(model).values()):
        return "none"
    return "inside" if weight_bytes(model) <= EMBEDDED_BYTES else "beside"


def check_output(output: Path) -> None:
    """Refuse a path that cannot be written, before any work starts.

    Raises
    ------
    InvalidInputError
        Not an .onnx, a folder that cannot be written to, or there lies a graph that this exporter
        has not written, or weights that no graph of its own there names.
    """
    if output.suffix != ".onnx":
        raise InvalidInputError(f"output {output} must end in .onnx")
    remove_leftovers(output.parent)  # with weights whose graph did not get to its place
    check_file(output, ours=SEAL.is_on)
    check_file(data_path(output), ours=lambda data: _is_named(output, data))


def is_whole(output: Path) -> bool:
    """Whether a graph and any weights beside it are there as they were written."""
    if not (output.is_file() and SEAL.is_on(output)):
        return False
    data = read_onnx(output).account.data
    return data is None or _is_named(output, data_path(output))


def _is_named(output: Path, data: Path) -> bool:
    """Whether weights are those that a graph of this exporter was written with."""
    if not (output.is_file() and data.is_file() and SEAL.is_on(output)):
        return False
    named = read_onnx(output).account.data
    return (
        named is not None
        and (named.file, named.size) == (data.name, data.stat().st_size)
        and named.sha256 == kept_sha256(data)
    )


def data_path(output: Path) -> Path:
    """Path of a large model's weights, beside it: ``model.onnx.data``."""
    return output.with_name(output.name + ".data")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a path of the same name in a new folder; move graph and weights to `output` on success.

    Two exports to one name come one after the other, and neither is mixed with the other.
    """
    with staging(output) as stage:
        yield stage.new / output.name
        check_output(output)  # others may have come meanwhile
        stage.publish(data_path(output).name)


def write(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write to `path`, weights beside it where they are too large to be in it, and seal it.

    The graph then names their size and hash, so that those of another export are refused.
    """
    if weights_place(model) != "beside":
        ir.save(model, path)
        SEAL.put_on(path)
        return
    done, total = 0, weight_bytes(model)

    def report(tensor: ir.TensorProtocol, _info: object) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)

    ir.save(model, path, external_data=data_path(path).name, callback=report)
    _name_data(path)
    SEAL.put_on(path)


def _name_data(path: Path) -> None:
    """Add to the graph's account what its weights are, which only their file tells."""
    data = data_path(path)
    account = GraphAccount(data=DataFile(data.name, data.stat().st_size, file_sha256(data)))
    proto = onnx.load(path, load_external_data=False)
    for key, value in account.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
