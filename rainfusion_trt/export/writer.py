"""Writes a model and its weights, so that the file is complete or absent."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import onnx
import onnx_ir as ir

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import DataFile, GraphAccount
from rainfusion_trt.hashing import file_sha256

EMBEDDED_BYTES = 1_500_000_000  # protobuf's limit is 2 GiB
Progress = Callable[[int, int], None]  # bytes written, bytes in total
WeightsPlace = Literal["inside", "beside", "none"]


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
    """Refuse a path that cannot be written, before any work starts."""
    if output.suffix != ".onnx":
        raise InvalidInputError(f"output {output} must end in .onnx")
    if output.is_dir():
        raise InvalidInputError(f"output {output} is a directory; name a file in it")


def data_path(output: Path) -> Path:
    """Path of a large model's weights, beside it: ``model.onnx.data``."""
    return output.with_name(output.name + ".data")


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """Give a path of the same name in a new folder; move the file to `output` on success.

    The folder is removed in any case, even on an interrupt.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.stem}-", dir=output.parent))
    try:
        stage = folder / output.name
        yield stage
        # There is no model file until the last move, and so never one with another model's weights.
        output.unlink(missing_ok=True)
        data_path(output).unlink(missing_ok=True)
        if data_path(stage).exists():
            data_path(stage).replace(data_path(output))
        stage.replace(output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Write to `path`, weights beside it where they are too large to be in it.

    The graph then names their size and hash, so that those of another export are refused.
    """
    if weights_place(model) != "beside":
        ir.save(model, path)
        return
    done, total = 0, weight_bytes(model)

    def report(tensor: ir.TensorProtocol, _info: object) -> None:
        nonlocal done
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)

    ir.save(model, path, external_data=data_path(path).name, callback=report)
    _name_data(path)


def _name_data(path: Path) -> None:
    """Add to the graph's account what its weights are, which only their file tells."""
    data = data_path(path)
    account = GraphAccount(data=DataFile(data.name, data.stat().st_size, file_sha256(data)))
    proto = onnx.load(path, load_external_data=False)
    for key, value in account.to_metadata().items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
