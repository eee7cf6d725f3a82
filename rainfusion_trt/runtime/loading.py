"""Loads what runs: the transformer in its backend, and the diffusers pipeline around it."""

from __future__ import annotations

from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.runtime.artifacts import Artifacts
from rainfusion_trt.runtime.denoiser import Denoiser, EngineDenoiser, TorchDenoiser
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend


def load_denoiser(
    name: str, artifacts: Artifacts, *, device: str | torch.device | None, cuda_graph: bool
) -> Denoiser:
    """Load the backend `name`.

    Raises
    ------
    RainFusionError
        It cannot run here, or not with this device or option.
    """
    place = torch.device(device) if device is not None else _default_device()
    if place.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device {place} was asked for, but torch finds no CUDA GPU")
    if cuda_graph and name not in ("tensorrt", "tensorrt_rtx"):
        raise UnsupportedError(f"cuda_graph=True needs an engine; the backend here is {name}")
    if name == "torch":
        return _load_torch(artifacts, place)
    if name == "onnxruntime":
        backend: Any = OnnxRuntimeBackend(artifacts.onnx, place)
    else:
        from rainfusion_trt.runtime.tensorrt import TensorRTBackend

        backend = TensorRTBackend(artifacts.engine, device=place, cuda_graph=cuda_graph)
    return EngineDenoiser(backend, artifacts.model, artifacts.config)


def _default_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _load_torch(artifacts: Artifacts, place: torch.device) -> Denoiser:
    transformer = artifacts.original_transformer
    if transformer is None:
        dtype = artifacts.dtype or artifacts.model.defaults.dtype
        transformer = artifacts.model.load(artifacts.checkpoint, dtype=dtype)
    return TorchDenoiser(transformer.to(place), artifacts.model, artifacts.settings)


def load_pipe(artifacts: Artifacts, denoiser: Denoiser, *, cpu_offload: bool) -> Any:
    """The diffusers pipeline with the denoiser in the transformer's place, on its device."""
    if cpu_offload and denoiser.device.type == "cpu":
        raise UnsupportedError("cpu_offload=True moves modules off the GPU; this runs on the CPU")
    pipe = artifacts.pipe
    if pipe is None:
        pipe = _from_checkpoint(artifacts, denoiser)
    if getattr(pipe, "transformer_2", None) is not None:
        raise UnsupportedError(
            f"this {type(pipe).__name__} has two transformers, of which Pipeline would replace the "
            "first only: call rainfusion_trt.enable on pipe.transformer and on pipe.transformer_2"
        )
    pipe.transformer = denoiser.component
    if cpu_offload:
        pipe.enable_model_cpu_offload(device=denoiser.device)
    else:
        pipe.to(denoiser.device)
    return pipe


def _from_checkpoint(artifacts: Artifacts, denoiser: Denoiser) -> Any:
    import diffusers

    pipeline_class = getattr(diffusers, artifacts.model.pipeline_class)
    dtype = artifacts.dtype or denoiser.component.dtype
    try:
        return pipeline_class.from_pretrained(artifacts.checkpoint, transformer=None, dtype=dtype)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"checkpoint {artifacts.checkpoint!r} cannot be loaded as a "
            f"{artifacts.model.pipeline_class}: {error}"
        ) from error
