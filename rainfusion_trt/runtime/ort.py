"""ONNX Runtime, in which attention is the exported function's dense body."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError, UnsupportedError
from rainfusion_trt.graph_file import GraphFile, read_onnx
from rainfusion_trt.runtime.base import Backend, TensorInfo, check_feed, torch_dtype

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"


class OnnxRuntimeBackend(Backend):
    """An exported ONNX file in ONNX Runtime.

    Parameters
    ----------
    path
        The ONNX file.
    device
        ``cuda`` needs onnxruntime-gpu; tensors are bound by address and run on torch's current
        stream. ``cpu`` shares memory with torch as well.

    Raises
    ------
    BackendUnavailableError
        ONNX Runtime is not installed, or has no CUDA provider.
    UnsupportedError
        A bfloat16 graph on the CPU, for which ONNX Runtime has no kernels.
    InvalidInputError
        ONNX Runtime cannot load the file, or the weights beside it are of another export.
    """

    name = "onnxruntime"
    sparse = False

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        self._path = Path(path)
        self.device = torch.device(device)
        self._stream: torch.cuda.Stream | None = None
        self._runtime = _import_runtime()
        file = read_onnx(self._path)
        file.verify_data()
        if self.device.type == "cpu":
            _refuse_bfloat16(file)
        self._session = self._load()
        self.inputs = {i.name: _info(i) for i in self._session.get_inputs()}
        self.outputs = {o.name: _info(o) for o in self._session.get_outputs()}

    def describe(self) -> str:
        provider = self._session.get_providers()[0]
        return f"ONNX Runtime {self._runtime.__version__} ({provider}), {self._path}"

    def run(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        check_feed(self, feed)
        binding = self._session.io_binding()
        for name, tensor in feed.items():
            self._bind(binding, name, tensor)
        for name in self.outputs:  # allocated by ONNX Runtime, which alone knows their sizes
            binding.bind_output(name, self.device.type, self.device.index or 0)
        if self._stream is None:
            self._session.run_with_iobinding(binding)
            return self._outputs(binding)
        options = self._runtime.RunOptions()
        # torch's stream waits for the session's below; the host need not.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        self._session.run_with_iobinding(binding, options)
        current.wait_stream(self._stream)
        return self._outputs(binding)

    def close(self) -> None:
        self._session = None

    def _load(self) -> Any:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3
        try:
            return self._runtime.InferenceSession(str(self._path), options, self._providers())
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            if type(error).__module__.startswith("onnxruntime"):
                raise InvalidInputError(
                    f"ONNX Runtime cannot load {self._path}: {str(error).splitlines()[0]}"
                ) from error
            raise

    def _providers(self) -> list[Any]:
        if self.device.type == "cpu":
            return [_CPU]
        if _CUDA not in self._runtime.get_available_providers():
            raise BackendUnavailableError(
                f"this ONNX Runtime {self._runtime.__version__} has no CUDA provider: "
                "pip install onnxruntime-gpu, or ask for device='cpu'"
            )
        self._stream = torch.cuda.Stream(self.device)
        index = self.device.index or 0
        options = {"device_id": index, "user_compute_stream": str(self._stream.cuda_stream)}
        return [(_CUDA, options), _CPU]

    def _bind(self, binding: Any, name: str, tensor: Tensor) -> None:
        import onnx

        dtype = str(tensor.dtype).removeprefix("torch.").upper().replace("FLOAT32", "FLOAT")
        binding.bind_input(
            name,
            device_type=self.device.type,
            device_id=self.device.index or 0,
            element_type=getattr(onnx.TensorProto, dtype),
            shape=tuple(tensor.shape),
            buffer_ptr=tensor.data_ptr(),
        )

    def _outputs(self, binding: Any) -> dict[str, Tensor]:
        """ONNX Runtime's own memory as torch tensors, which keep it alive."""
        from torch.utils.dlpack import from_dlpack

        values = zip(self.outputs, binding.get_outputs(), strict=True)
        # In older releases (1.23, 1.24) only the object inside an OrtValue speaks DLPack.
        return {
            name: from_dlpack(v if hasattr(v, "__dlpack__") else v._ortvalue) for name, v in values
        }


def _refuse_bfloat16(file: GraphFile) -> None:
    if any(tensor.dtype == "bfloat16" for tensor in file.inputs):
        raise UnsupportedError(
            f"{file.path} is in bfloat16, for which ONNX Runtime has no CPU kernels: export "
            "with --dtype fp32 for the CPU, or use a GPU"
        )


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailableError(
            "onnxruntime is not installed: pip install onnxruntime, or onnxruntime-gpu on a GPU"
        ) from error
    return onnxruntime


def _info(value: Any) -> TensorInfo:
    bounds = tuple(axis if isinstance(axis, int) else None for axis in value.shape)
    return TensorInfo(value.name, torch_dtype(value.type), bounds, bounds)
