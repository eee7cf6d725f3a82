"""Runs an exported model in ONNX Runtime beside the PyTorch model it came from."""

from __future__ import annotations

from pathlib import Path

import torch

from rainfusion_trt.errors import ExportError, InvalidInputError
from rainfusion_trt.export.source import GraphSource

TOLERANCE = 1e-4  # float32 rounding through tens of layers stays near 1e-5


def check_comparable(dtype: torch.dtype, *, has_weights: bool) -> None:
    """ONNX Runtime's CPU kernels compute these graphs in float32 only."""
    if not has_weights:
        raise InvalidInputError("--compare needs weights; it cannot run a graph without them")
    if dtype is not torch.float32:
        name = str(dtype).removeprefix("torch.")
        raise InvalidInputError(
            f"--compare runs ONNX Runtime on the CPU in float32, the model is {name}; export with "
            "--dtype fp32 (add --layers to keep it small)"
        )


def compare(path: Path, source: GraphSource) -> float:
    """Largest error of ``sample`` relative to its largest value, at sparsity 0.

    Raises
    ------
    ExportError
        It is above 1e-4, or not finite.
    """
    import onnxruntime

    with torch.no_grad():
        expected = source.eager(source.arguments(source.inputs)).cpu()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {name: tensor.cpu().numpy() for name, tensor in source.inputs.items()}
    feed["sparsity"] = torch.zeros(1).numpy()
    actual = torch.from_numpy(session.run(["sample"], feed)[0])
    error = float((actual - expected).abs().max() / expected.abs().max())
    if not error <= TOLERANCE:
        raise ExportError(
            f"{path}: ONNX Runtime differs from PyTorch by {error:.1e} (relative), allowed are "
            f"{TOLERANCE:.0e}; the export is wrong"
        )
    return error
