"""Loads what runs: the transformer in its backend, and the diffusers pipeline around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from rainfusion_trt.console import one_line
from rainfusion_trt.errors import EngineLoadError, InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.runtime.artifacts import Artifacts, Part
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.denoiser import Denoiser, GraphDenoiser
from rainfusion_trt.runtime.experts import ExpertsDenoiser
from rainfusion_trt.runtime.graphs import Graph
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend
from rainfusion_trt.runtime.pipes import class_of_checkpoint
from rainfusion_trt.runtime.torch_denoiser import TorchDenoiser
from rainfusion_trt.weights_hash import check_weights


def load_denoiser(
    name: str,
    artifacts: Artifacts,
    *,
    device: str | torch.device | None,
    cuda_graph: bool,
    allow_dense: bool,
    compile: bool = False,
) -> Denoiser:
    """Load the backend `name`.

    Raises
    ------
    RainFusionError
        It cannot run here, or not with this device or option.
    """
    place = runtime_device(device)
    _check_cuda_graph(name, cuda_graph=cuda_graph)
    if compile and name != "torch":
        raise UnsupportedError(
            f"compile=True is for the PyTorch transformer; the backend here is {name}: leave it "
            "out, or use backend='torch'"
        )
    experts: list[Denoiser] = []
    try:
        for part in artifacts.parts:
            if name == "torch":
                experts.append(_load_torch(artifacts, part, place, allow_dense, compile))
            else:
                experts.append(_load_graph(name, artifacts, part, place, cuda_graph))
    except BaseException:
        for expert in experts:
            expert.close()
        raise
    return experts[0] if len(experts) == 1 else ExpertsDenoiser(experts)


def _load_graph(
    name: str, artifacts: Artifacts, part: Part, place: torch.device, cuda_graph: bool
) -> Denoiser:
    if part.original is not None:
        check_weights(part.graph_of(name).account, part.original, part.graph_of(name).origin)
    # `candidates` names only backends whose artifact was given.
    path = part.onnx if name == "onnxruntime" else part.engine
    assert path is not None and part.config is not None
    graph = part.graph_of(name)
    backend = graph_backend(name, path, graph, place, cuda_graph=cuda_graph)
    return GraphDenoiser(backend, artifacts.model, part.config, graph.account.attention_nodes)


def graph_backend(
    name: str, path: Path, graph: Graph, place: torch.device, *, cuda_graph: bool
) -> Backend:
    """Load an ONNX file in ONNX Runtime, or the folder of an engine in its TensorRT.

    Parameters
    ----------
    name
        Of the backend.
    path, graph
        The file or folder, and what it said of itself.
    place, cuda_graph
        Where it runs, and whether calls of an engine are replayed as CUDA graphs.

    Raises
    ------
    RainFusionError
        It cannot run here, or not so.
    """
    _check_cuda_graph(name, cuda_graph=cuda_graph)
    if name == "onnxruntime":
        return OnnxRuntimeBackend(path, place)
    from rainfusion_trt.runtime.tensorrt import TensorRTBackend

    backend = TensorRTBackend(path, device=place, cuda_graph=cuda_graph)
    if backend.metadata.account != graph.account:
        backend.close()
        raise EngineLoadError(f"{path} was replaced while it was loaded: load it again")
    return backend


def _check_cuda_graph(name: str, *, cuda_graph: bool) -> None:
    if cuda_graph and name not in ("tensorrt", "tensorrt_rtx"):
        raise UnsupportedError(f"cuda_graph=True needs an engine; the backend here is {name}")


def runtime_device(asked: str | torch.device | None) -> torch.device:
    """The device that was asked for; by default the GPU where there is one, else the CPU."""
    if asked is None:
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")
    try:
        place = torch.device(asked)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device {asked!r} is none: use cuda, cuda:1 or cpu") from error
    if place.type not in ("cuda", "cpu"):
        raise InvalidInputError(f"device {str(place)!r} runs nothing here: use cuda or cpu")
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index: int | None = place.index  # None for "cuda" alone, though torch's types say int
        if not count:
            raise InvalidInputError(f"device {place} was asked for, but torch finds no CUDA GPU")
        if index is not None and index >= count:
            raise InvalidInputError(f"device {place} was asked for, but torch finds {count} GPUs")
    return place


def _load_torch(
    artifacts: Artifacts, part: Part, place: torch.device, allow_dense: bool, compile: bool
) -> Denoiser:
    transformer = part.original
    if transformer is not None:
        _check_whole(part.component, transformer)
    else:
        assert artifacts.checkpoint is not None  # there is a checkpoint or a pipeline
        dtype = artifacts.dtype or artifacts.model.defaults.dtype
        source = artifacts.checkpoint if part.weights is None else str(part.weights)
        transformer = artifacts.model.load(source, dtype=dtype, component=part.component)
    return TorchDenoiser(
        transformer.to(place),
        artifacts.model,
        artifacts.settings,
        allow_dense=allow_dense,
        compile=compile,
    )


def load_pipe(artifacts: Artifacts, denoiser: Denoiser, *, cpu_offload: bool) -> Any:
    """The diffusers pipeline with the denoiser in the transformers' place, on its device."""
    if cpu_offload and denoiser.device.type == "cpu":
        raise UnsupportedError("cpu_offload=True moves modules off the GPU; this runs on the CPU")
    pipe = artifacts.pipe
    if pipe is None:
        pipe = _from_checkpoint(artifacts, denoiser)
    if len(artifacts.parts) > 1 and pipe.config.get("boundary_ratio") is None:
        raise InvalidInputError(
            f"this {type(pipe).__name__} has no boundary_ratio, which says where its second "
            "transformer takes over: give one to its constructor"
        )
    for part, component in zip(artifacts.parts, denoiser.components, strict=True):
        setattr(pipe, part.component, component)
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            _check_whole(name, component)
    try:
        if cpu_offload:
            pipe.enable_model_cpu_offload(device=denoiser.device)
        else:
            pipe.to(denoiser.device)
    except ValueError as error:  # of a device map, of offloading
        raise InvalidInputError(
            f"{type(pipe).__name__} cannot be moved to {denoiser.device}: {one_line(str(error))}"
        ) from error
    return pipe


def _check_whole(name: str, module: nn.Module) -> None:
    """Refuse a module whose weights are elsewhere, which cannot be moved.

    Raises
    ------
    InvalidInputError
        Sequential or disk offloading has them, or they were never loaded.
    """
    if any(parameter.is_meta for parameter in module.parameters()):
        raise InvalidInputError(
            f"pipe.{name} has weights on the meta device, as sequential and disk offloading leave "
            "them, and Pipeline moves whole models: call pipe.remove_all_hooks() and give "
            "cpu_offload=True, or use rainfusion_trt.enable, which leaves the offloading as it is"
        )


def is_in_place(pipe: Any, component: str, ours: Any) -> bool:
    """Whether a pipeline calls the module `ours`, itself or within what was put around it."""
    current = getattr(pipe, component, None)
    if current is ours:
        return True
    module = uncompiled(ours)
    return isinstance(current, nn.Module) and any(part is module for part in current.modules())


def check_in_place(artifacts: Artifacts, denoiser: Denoiser, pipe: Any) -> None:
    """See that a pipeline still has the transformers that `load_pipe` gave it.

    Raises
    ------
    InvalidInputError
        One was replaced since, and would run as it is, without us.
    """
    for part, ours in zip(artifacts.parts, denoiser.components, strict=True):
        if not is_in_place(pipe, part.component, ours):
            found = type(getattr(pipe, part.component, None)).__name__
            raise InvalidInputError(
                f"the pipeline's {part.component} is another {found} than when this Pipeline was "
                "made, and would run without it: close() this Pipeline and make a new one, or put "
                "the first one back"
            )


def _from_checkpoint(artifacts: Artifacts, denoiser: Denoiser) -> Any:
    assert artifacts.checkpoint is not None  # there is a checkpoint or a pipeline
    dtype = artifacts.dtype or denoiser.component.dtype
    left_out = dict.fromkeys(artifacts.originals)
    return pipe_of_checkpoint(artifacts.model, artifacts.checkpoint, dtype=dtype, **left_out)


def pipe_of_checkpoint(
    model: VideoModel, checkpoint: str, *, dtype: torch.dtype, **components: Any
) -> Any:
    """The diffusers pipeline that a checkpoint names, on the CPU.

    Parameters
    ----------
    model, checkpoint, dtype
        As of `Pipeline`.
    **components
        In the place of the checkpoint's; None for those that are not loaded.

    Raises
    ------
    InvalidInputError
        Nothing usable is there.
    """
    pipeline_class = class_of_checkpoint(model, checkpoint)
    try:
        return pipeline_class.from_pretrained(checkpoint, dtype=dtype, **components)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} cannot be loaded as a {pipeline_class.__name__}: {error}"
        ) from error
