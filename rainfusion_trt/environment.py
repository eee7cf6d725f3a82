"""Finds which of the optional dependencies are installed on this machine."""

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
class Finding:
    """One thing that was looked for.

    Attributes
    ----------
    name : str
        Its name, for display.
    found : str
        Version or path; empty if it is not there.
    remedy : str
        Advice on installing it.
    """

    name: str
    found: str
    remedy: str = ""


def survey() -> Iterator[Finding]:
    """Everything, in the order a user needs it; imports torch and TensorRT."""
    yield Finding("Python", platform.python_version())
    yield _torch()
    yield _gpu()
    yield _package("diffusers", "pip install 'rainfusion-trt[pipeline]'")
    yield _package("transformers", "pip install 'rainfusion-trt[pipeline]'")
    yield _package(
        "sentencepiece",
        "for tokenizers without tokenizer.json (CogVideoX, LTX-Video, Allegro): "
        "pip install 'rainfusion-trt[pipeline]'",
    )
    yield _package("onnx", "pip install 'rainfusion-trt[export]'")
    yield _onnxruntime()
    yield from _tensorrt()
    yield _plugin()
    yield _nvcc()
    yield _package("cuda-python", "for CUDA graphs: pip install 'rainfusion-trt[cuda]'")
    yield _package("av", "to write mp4: pip install 'rainfusion-trt[pipeline]'")
    yield _package("ray", "to serve videos: pip install 'rainfusion-trt[serve]'")


def _package(name: str, remedy: str) -> Finding:
    try:
        return Finding(name, metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(name, "", remedy)


def _torch() -> Finding:
    import torch

    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU build"
    return Finding("torch", f"{torch.__version__} ({built})")


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        wanted = "an NVIDIA GPU of compute capability 8.0 or newer, its driver and a CUDA torch"
        return Finding("GPU", "", f"{wanted}; engines and kernels need one, the rest does not")
    major, minor = torch.cuda.get_device_capability()
    return Finding("GPU", f"{torch.cuda.get_device_name()}, compute capability {major}.{minor}")


def _onnxruntime() -> Finding:
    if importlib.util.find_spec("onnxruntime") is None:
        return Finding("onnxruntime", "", "pip install onnxruntime, or onnxruntime-gpu on a GPU")
    import onnxruntime

    providers = onnxruntime.get_available_providers()
    place = "CUDA" if "CUDAExecutionProvider" in providers else "CPU only"
    return Finding("onnxruntime", f"{onnxruntime.__version__} ({place}; attention runs dense)")


def _tensorrt() -> Iterator[Finding]:
    from rainfusion_trt.engine.flavour import available_flavours, load_tensorrt

    remedies = {
        "tensorrt": "pip install tensorrt (NVIDIA's installer fetches it), for data centre GPUs",
        "tensorrt_rtx": "pip install 'rainfusion-trt[rtx]', for RTX GPUs; builds without a GPU",
    }
    for name, remedy in remedies.items():
        if name not in available_flavours():
            yield Finding(name, "", remedy)
            continue
        try:
            yield Finding(name, str(load_tensorrt(name)))
        except RainFusionError as error:
            yield Finding(name, "", str(error))


def _plugin() -> Finding:
    from rainfusion_trt.operator import native

    try:
        library = native.load_library()
    except RainFusionError as error:
        return Finding("plugin library", "", str(error))
    return Finding("plugin library", f"{library.path} ({library.build_info})")


def _nvcc() -> Finding:
    from rainfusion_trt.plugin.toolkit import find_cuda_toolkit

    name = "nvcc, to build the plugin"
    with tempfile.TemporaryDirectory() as scratch:
        try:
            toolkit = find_cuda_toolkit(Path(scratch))
        except RainFusionError as error:
            return Finding(name, "", str(error))
    place = "wheels" if toolkit.root is not None else str(toolkit.nvcc)
    return Finding(name, f"{'.'.join(map(str, toolkit.version))} ({place})")
