"""Compare an exported model in ONNX Runtime with its engine, by Polygraphy.

    rainfusion-trt export --model cogvideox --random-weights --config tiny --dynamic \\
        --dtype fp16 --output out/tiny.onnx
    rainfusion-trt build-engine out/tiny.onnx --recipe engines/tiny-cogvideox.yaml --target native
    python scripts/compare_polygraphy.py out/tiny.onnx --engine out/tiny.engine

The sparsity is 0: ONNX Runtime runs the dense body of the attention nodes, the engine the plugin.
ONNX Runtime knows no bfloat16 on the CPU; hold an engine in bfloat16 against a float32 export of
the same checkpoint. The engine half needs a GPU.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, CompareFunc

from rainfusion_trt.engine import EngineMetadata, load_metadata
from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.graph_file import parse_size, read_onnx
from rainfusion_trt.models import get_model
from rainfusion_trt.runtime.base import torch_dtype
from rainfusion_trt.runtime.tensorrt import TensorRTBackend

Feed = dict[str, np.ndarray]


class EngineRunner(BaseRunner):
    """An engine folder as a Polygraphy runner.

    Polygraphy's TrtRunner knows only `tensorrt` and not our plugin. This one runs the backend of
    `Pipeline`.

    Parameters
    ----------
    backend
        The loaded engine.
    feed
        A feed, for the dtypes that the other runner takes; they become the engine's on the device.
    """

    def __init__(self, backend: TensorRTBackend, feed: Feed) -> None:
        super().__init__(name=backend.name)
        self._backend = backend
        self._feed = feed

    def get_input_metadata_impl(self) -> TensorMetadata:
        metadata = TensorMetadata()
        for name, info in self._backend.inputs.items():
            bounds = zip(info.min_shape, info.max_shape, strict=True)
            shape = [low if low == high else None for low, high in bounds]
            metadata.add(name, dtype=self._feed[name].dtype, shape=shape)
        return metadata

    def infer_impl(self, feed_dict: Feed) -> OrderedDict[str, np.ndarray]:
        feed = {
            name: torch.from_numpy(feed_dict[name]).to(self._backend.device, info.dtype)
            for name, info in self._backend.inputs.items()
        }
        torch.cuda.synchronize()
        started = time.perf_counter()
        outputs = self._backend.run(feed)
        torch.cuda.synchronize()
        self.inference_time = time.perf_counter() - started
        dtype = self._feed["hidden_states"].dtype
        return OrderedDict(
            (name, tensor.float().cpu().numpy().astype(dtype)) for name, tensor in outputs.items()
        )


def make_feed(
    onnx: Path, engine: EngineMetadata, *, size: str | None = None, seed: int = 0
) -> Feed:
    """Inputs for one call at sparsity 0, of the ONNX file's dtypes and the engine's precision."""
    clip = parse_size(size or engine.size)
    if engine.model is None or clip is None:
        raise InvalidInputError(
            "the engine does not say its model and size: export with rainfusion-trt export"
        )
    first = engine.inputs[0]
    batch = next((r.opt[0] for r in first.profiles.values()), first.shape[0])
    model = get_model(engine.model)
    config = engine.config or model.config()
    tensors = model.drawn_inputs(config, clip, batch=batch, dtype=torch.float32, seed=seed)
    tensors["sparsity"] = torch.zeros(1)
    precision, dtypes = torch_dtype(engine.precision), onnx_dtypes(onnx)
    if set(dtypes) != set(tensors):
        raise InvalidInputError(
            f"{onnx} takes {', '.join(dtypes)}, the engine {', '.join(tensors)}: not one model"
        )
    feed = {}
    for name, dtype in dtypes.items():
        record = next(r for r in engine.inputs if r.name == name)
        if record.dtype == engine.precision:
            # Rounded first, so that both sides see the same values.
            tensors[name] = tensors[name].to(precision)
        feed[name] = tensors[name].to(dtype).numpy()
    return feed


def onnx_dtypes(path: Path) -> dict[str, torch.dtype]:
    """Inputs of an ONNX file."""
    return {tensor.name: torch_dtype(tensor.dtype) for tensor in read_onnx(path).inputs}


def onnx_runner(path: Path) -> OnnxrtRunner:
    """ONNX Runtime on the CPU."""
    return OnnxrtRunner(
        SessionFromOnnx(str(path), providers=["CPUExecutionProvider"]), name="onnxruntime"
    )


def compare(runners: list[BaseRunner], feed: Feed, *, rtol: float, atol: float) -> Any:
    """Run and compare; Polygraphy prints its statistics. True if every output matches."""
    results = Comparator.run(runners, data_loader=[OrderedDict(feed)])
    accuracy = Comparator.compare_accuracy(
        results, compare_func=CompareFunc.simple(rtol=rtol, atol=atol)
    )
    return bool(accuracy) and Comparator.validate(results, check_inf=True, check_nan=True)


def main(
    onnx: Annotated[Path, typer.Argument(help="Exported model, float16 or float32.")],
    engine: Annotated[Path, typer.Option(help="Folder of rainfusion-trt build-engine.")],
    plugin: Annotated[Path | None, typer.Option(help="Plugin library.")] = None,
    size: Annotated[str | None, typer.Option(help="FRAMESxHEIGHTxWIDTH (the export's).")] = None,
    rtol: Annotated[float, typer.Option(help="Relative tolerance of an element.")] = 2e-2,
    atol: Annotated[float, typer.Option(help="Absolute tolerance of an element.")] = 2e-2,
    seed: Annotated[int, typer.Option(help="Seed of the inputs.")] = 0,
) -> None:
    """Compare ONNX Runtime with an engine; ends with status 1 if they differ."""
    try:
        feed = make_feed(onnx, load_metadata(engine, verify=False), size=size, seed=seed)
        backend = TensorRTBackend(engine, plugin=plugin)
    except RainFusionError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error
    same = compare([onnx_runner(onnx), EngineRunner(backend, feed)], feed, rtol=rtol, atol=atol)
    backend.close()
    sys.exit(0 if same else 1)


if __name__ == "__main__":
    typer.run(main)
