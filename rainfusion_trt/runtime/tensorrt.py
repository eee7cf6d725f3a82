"""Runs an engine on torch's tensors and streams: TensorRT and TensorRT for RTX."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rainfusion_trt.engine.flavour import TensorRTFlavour, load_tensorrt
from rainfusion_trt.engine.logger import process_logger
from rainfusion_trt.engine.metadata import (
    ENGINE_FILE,
    EngineMetadata,
    load_metadata,
    read_plan,
)
from rainfusion_trt.engine.plugin_registry import register_plugin
from rainfusion_trt.errors import BackendUnavailableError, EngineLoadError, KernelError
from rainfusion_trt.graph_file import BITS_INPUT
from rainfusion_trt.hashing import file_sha256
from rainfusion_trt.operator.native import Precision, load_library
from rainfusion_trt.runtime.base import Backend, TensorInfo, check_feed
from rainfusion_trt.runtime.cuda_graph import CapturedGraph, import_cudart
from rainfusion_trt.runtime.engine_check import check_engine
from rainfusion_trt.runtime.engine_io import Shape, profile_infos, select_profile, tensor_infos
from rainfusion_trt.runtime.rtx_cache import RuntimeCache

_log = logging.getLogger(__name__)


class TensorRTBackend(Backend):
    """An engine folder, loaded.

    Inputs are read where torch keeps them and outputs and scratch memory come from torch's
    allocator; nothing is copied through the host, and no call waits for the device.

    Parameters
    ----------
    engine_folder : path
        Folder with engine.plan and metadata.json.
    device : str or torch.device
        A CUDA device.
    plugin : path, optional
        Plugin library; by default the one that `rainfusion_trt.plugin.build.find_library` finds.
    cuda_graph : bool
        Capture a call and replay it. Inputs are then copied on the device to fixed addresses; a
        call with other shapes captures anew, and so does one in another precision, which is a shape
        too. The value of `sparsity` may change between replays.

    Raises
    ------
    EngineLoadError
        The folder is damaged, or the engine is of another TensorRT or for another GPU.
    BackendUnavailableError
        No CUDA device, TensorRT, or cuda-python for `cuda_graph`.
    UnsupportedError
        The plugin library holds no kernels for this GPU, or an engine of 8 bits none of 8 bits.

    Notes
    -----
    One object is for one thread at a time. Several objects, also of one folder, run at the same
    time on different streams.
    """

    def __init__(
        self,
        engine_folder: str | Path,
        device: str | torch.device = "cuda",
        plugin: str | Path | None = None,
        cuda_graph: bool = False,
    ) -> None:
        self._folder = Path(engine_folder)
        self.metadata = load_metadata(self._folder, verify=False)  # _load hashes what it loads
        self.device = _cuda_device(device)
        self._flavour = load_tensorrt(self.metadata.flavour)
        self.name = self._flavour.name
        self.inputs = tensor_infos(self.metadata.inputs)
        self.outputs = tensor_infos(self.metadata.outputs)
        self._profiles = profile_infos(self.metadata)
        self._use_graph = cuda_graph
        if cuda_graph:
            import_cudart()
        capability = torch.cuda.get_device_capability(self.device)
        check_compatible(self.metadata, self._flavour, capability)
        library = load_library(plugin)
        library.check_device(*capability)
        if BITS_INPUT in self.inputs:
            library.check_precision(Precision.BITS_8, *capability)
        if file_sha256(library.path) != self.metadata.plugin.sha256:
            _log.warning(
                "%s was built with the plugin %s, running with %s",
                *(self._folder, self.metadata.plugin.build, library.build_info),
            )
        # TensorRT's objects, which have no types; None once closed.
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._logger = process_logger(self._flavour.module)
        self._logger.clear()
        with torch.cuda.device(self.device):
            self._load(library.path)
        self._stream = torch.cuda.Stream(self.device)  # see run
        self._last_stream: torch.cuda.Stream | None = None
        self._shapes: dict[str, Shape] | None = None
        self._profile = 0
        self._workspace: Tensor | None = None
        self._graph: CapturedGraph | None = None
        self._static_inputs: dict[str, Tensor] = {}
        self._static_outputs: dict[str, Tensor] = {}

    @property
    def profiles(self) -> tuple[Mapping[str, TensorInfo], ...]:
        """One for each optimisation profile."""
        return self._profiles

    def run(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once; see `Backend.run`.

        Raises
        ------
        InvalidInputError
            A tensor is missing, or its dtype, device or shape does not fit the engine.
        KernelError
            TensorRT could not enqueue the work.
        """
        check_feed(self, feed)
        with torch.cuda.device(self.device):
            current = torch.cuda.current_stream(self.device)
            # On the default stream TensorRT synchronises with the device and nothing can be
            # captured, so a stream of our own takes its place, between two waits.
            direct = current != torch.cuda.default_stream(self.device) and not self._use_graph
            stream = current if direct else self._stream
            stream.wait_stream(current)
            if self._last_stream is not None and self._last_stream != stream:
                stream.wait_stream(self._last_stream)  # calls share scratch memory
            self._last_stream = stream
            with torch.cuda.stream(stream):
                outputs = self._replay(feed) if self._use_graph else self._enqueue_once(feed)
            current.wait_stream(stream)
            if not direct and not self._use_graph:
                for tensor in outputs.values():
                    tensor.record_stream(current)
            return outputs

    def describe(self) -> str:
        graph = ", CUDA graph" if self._use_graph else ""
        device = torch.cuda.get_device_name(self.device)
        return f"{self._flavour} on {device}{graph}, {self._folder}"

    def close(self) -> None:
        """Free engine, scratch memory and graph; waits for the work under way."""
        if self._last_stream is not None:
            self._last_stream.synchronize()
        self._drop_graph()
        self._context = self._engine = self._runtime = None
        self._workspace = None

    # -- loading --------------------------------------------------------------------------------

    def _load(self, library: Path) -> None:
        trt = self._flavour.module
        if not register_plugin(trt, library):
            raise EngineLoadError(self._logger.explain(f"TensorRT cannot load {library}"))
        plan = self._folder / ENGINE_FILE
        self._runtime = trt.Runtime(self._logger.trt_logger)
        content = read_plan(self._folder, self.metadata)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        del content  # before the engine asks for memory
        if self._engine is None:
            raise EngineLoadError(
                self._logger.explain(f"{self._flavour} cannot load {plan}: build the engine again")
            )
        check_engine(self._engine, self.metadata, plan)
        # Scratch memory is handed in, from torch's allocator.
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        self._cache: RuntimeCache | None = None
        if self.name == "tensorrt_rtx":
            config = self._engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            # Compile kernels for a shape before it runs: its hundred steps all gain, and a graph
            # would capture the fallback kernels for good.
            kinds = trt.DynamicShapesKernelSpecializationStrategy
            config.dynamic_shapes_kernel_specialization_strategy = kinds.EAGER
            self._cache = RuntimeCache(self._folder, config)
            self._context = self._engine.create_execution_context(config)
        else:
            self._context = self._engine.create_execution_context(strategy)
        if self._context is None:
            raise EngineLoadError(self._logger.explain(f"{plan}: no execution context"))

    # -- running --------------------------------------------------------------------------------

    def _enqueue_once(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        fresh = self._set_shapes(feed)
        outputs = self._new_outputs()
        self._bind({**feed, **outputs})
        self._enqueue()
        if fresh and self._cache is not None:
            self._cache.save()
        return outputs

    def _replay(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._set_shapes(feed) or self._graph is None:
            self._drop_graph()
            self._static_inputs = {name: torch.empty_like(t) for name, t in feed.items()}
            self._static_outputs = self._new_outputs()
            self._bind({**self._static_inputs, **self._static_outputs})
            self._copy(feed)
            # TensorRT finishes what it puts off, and compiles, in a first call outside capture. It
            # is this one: capturing computes nothing.
            self._enqueue()
            if self._cache is not None:
                self._cache.save()
            self._graph = self._capture()
        else:
            self._copy(feed)
            self._graph.replay()
        return dict(self._static_outputs)

    def _capture(self) -> CapturedGraph:
        # TensorRT 10 has no such question; there the capture itself fails.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(self._stream.cuda_stream):
            raise KernelError(
                self._logger.explain("this engine cannot be captured; run with cuda_graph=False")
            )
        return CapturedGraph(self._stream, self._enqueue)

    def _copy(self, feed: Mapping[str, Tensor]) -> None:
        for name, tensor in feed.items():
            self._static_inputs[name].copy_(tensor)

    def _drop_graph(self) -> None:
        if self._graph is not None:
            self._graph.close()
            self._graph = None
        self._static_inputs, self._static_outputs = {}, {}

    def _set_shapes(self, feed: Mapping[str, Tensor]) -> bool:
        """Prepare the context for new shapes; False if they are those of the last call."""
        shapes = {name: tuple(tensor.shape) for name, tensor in feed.items()}
        if shapes == self._shapes:
            return False
        profile = select_profile(self.metadata, shapes)
        self._shapes = None  # until all of it is set
        stream = torch.cuda.current_stream(self.device)
        if profile != self._profile:
            if not self._context.set_optimization_profile_async(profile, stream.cuda_stream):
                raise KernelError(self._logger.explain(f"optimisation profile {profile} refused"))
            self._profile = profile
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise KernelError(self._logger.explain(f"shape {shape} of input {name} refused"))
        size = self._context.update_device_memory_size_for_shapes()
        if self._workspace is None or self._workspace.numel() < size:
            if self._workspace is not None:
                # Freed before the new one is made, since both may not fit; not while in use.
                self._workspace.record_stream(stream)
                self._workspace = None
            self._workspace = torch.empty(max(size, 1), dtype=torch.uint8, device=self.device)
        self._context.set_device_memory(self._workspace.data_ptr(), self._workspace.numel())
        self._shapes = shapes
        return True

    def _new_outputs(self) -> dict[str, Tensor]:
        return {
            name: torch.empty(
                tuple(self._context.get_tensor_shape(name)), dtype=info.dtype, device=self.device
            )
            for name, info in self.outputs.items()
        }

    def _bind(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise KernelError(self._logger.explain(f"address of {name} refused"))

    def _enqueue(self) -> None:
        stream = torch.cuda.current_stream(self.device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise KernelError(self._logger.explain(f"{self._flavour} could not run the engine"))


def check_compatible(
    metadata: EngineMetadata, flavour: TensorRTFlavour, capability: tuple[int, int]
) -> None:
    """Raise EngineLoadError if this TensorRT or GPU cannot be the engine's.

    Parameters
    ----------
    capability : tuple of int
        Compute capability of the GPU, for example (9, 0).
    """
    built, here = (_release(version) for version in (metadata.version, flavour.version))
    if metadata.flavour != flavour.name or built != here:
        raise EngineLoadError(
            f"the engine was built by {metadata.flavour} {metadata.version}, installed is "
            f"{flavour.name} {flavour.version}: build it again here, or install that version"
        )
    gpu = capability[0] * 10 + capability[1]
    targets = [int(name.removeprefix("sm")) for name in metadata.targets]
    if gpu in targets:
        return
    names = ", ".join(metadata.targets)
    if metadata.flavour == "tensorrt" or gpu < min(targets):
        raise EngineLoadError(
            f"the engine was built for {names}, this GPU is sm{gpu}: build it again for this GPU"
        )
    # TensorRT for RTX loads engines of older architectures on some newer ones; it decides itself.
    _log.warning("the engine was built for %s, this GPU is sm%d", names, gpu)


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:3])


def _cuda_device(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        found = "torch sees no GPU" if device.type == "cuda" else f"got device {device}"
        raise BackendUnavailableError(
            f"a TensorRT engine runs on an NVIDIA GPU only, {found}: use backend='onnxruntime' or "
            "'torch' on the CPU"
        )
    index: int | None = device.index  # None for "cuda" alone, though torch's types say int
    return torch.device("cuda", torch.cuda.current_device() if index is None else index)
