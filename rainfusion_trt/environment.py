"""What of all that this project can use is installed on this machine."""

from __future__ import annotations

import importlib.util
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from rainfusion_trt.errors import RainFusionError


@dataclass(frozen=True)
class Part:
    """One thing to find.

    Attributes
    ----------
    name : str
        What it is.
    found : str
        Version or path; empty if it is not there.
    remedy : str
        How to get it.
    """

    name: str
    found: str
    remedy: str = ""


def survey() -> Iterator[Part]:
    """Everything, in the order a user needs it; imports torch and TensorRT."""
    yield Part("Python", platform.python_version())
    yield _torch()
    yield _gpu()
    yield _package("diffusers", "pip install 'rainfusion-trt[pipeline]'")
    yield _package("transformers", "pip install 'rainfusion-trt[pipeline]'")
    yield _package("onnx", "pip install 'rainfusion-trt[export]'")
    yield _onnxruntime()
    yield from _tensorrt()
    yield _plugin()
    yield _nvcc()
    yield _package("cuda-python", "for CUDA graphs: pip install 'rainfusion-trt[cuda]'")
    yield _package("av", "to write mp4: pip install 'rainfusion-trt[pipeline]'")


def _package(name: str, remedy: str) -> Part:
    try:
        return Part(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Part(name, "", remedy)


def _torch() -> Part:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Part("torch", f"{torch.__version__} ({built})")


def _gpu() -> Part:
    import torch

    if not torch.cuda.is_available():
        wanted = "an NVIDIA GPU of compute capability 8.0 or newer, its driver and a CUDA torch"
        return Part("GPU", "", f"{wanted}; engines and kernels need one, the rest does not")
    major, minor = torch.cuda.get_device_capability()
    return Part("GPU", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")


def _onnxruntime() -> Part:
    if importlib.util.find_spec("onnxruntime") is None:
        return Part("onnxruntime", "", "pip install onnxruntime, or onnxruntime-gpu on a GPU")
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    place = "CUDA" if "CUDAExecutionProvider" in providers else "CPU only"
    return Part("onnxruntime", f"{onnxruntime.__version__} ({place}; attention runs dense)")


def _tensorrt() -> Iterator[Part]:
    from rainfusion_trt.engine.flavour import available_flavours, load_tensorrt

    remedies = {
        "tensorrt": "pip install tensorrt (NVIDIA's installer fetches it), for data centre GPUs",
        "tensorrt_rtx": "pip install 'rainfusion-trt[rtx]', for RTX GPUs; builds without a GPU",
    }
    for name, remedy in remedies.items():
        if name not in available_flavours():
            yield Part(name, "", remedy)
            continue
        try:
            yield Part(name, str(load_tensorrt(name)))
        except RainFusionError as error:
            yield Part(name, "", str(error))


def _plugin() -> Part:
    from rainfusion_trt.operator import native

    try:
        library = native.load_library()
    except RainFusionError as error:
        return Part("plugin library", "", str(error))
    return Part("plugin library", f"{library.path} ({library.build_info})")


def _nvcc() -> Part:
    from rainfusion_trt.plugin.toolkit import find_cuda_toolkit

    name = "nvcc, to build the plugin"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            toolkit = find_cuda_toolkit(Path(scratch))
        except RainFusionError as error:
            return Part(name, "", str(error))
    place = "wheels" if toolkit.root is not None else str(toolkit.nvcc)
    return Part(name, f"{'.'.join(map(str, toolkit.version))} ({place})")
