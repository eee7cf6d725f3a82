"""``load_graph``: an engine or ONNX file as a module, in code that calls a transformer itself.

For what `Pipeline` does not drive, such as diffusers' modular blocks, or a loop of your own.
"""

from __future__ import annotations

import functools
import inspect
import logging
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import DenseAttentionError, InvalidInputError, UnsupportedError
from rainfusion_trt.models import get_model
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.operator.settings import OPERATOR_V1_DEFAULTS, AttentionSettings, Precision
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.choose import refuse_dense
from rainfusion_trt.runtime.denoiser import GraphTransformer
from rainfusion_trt.runtime.graphs import Graph, graph_of_engine, graph_of_onnx
from rainfusion_trt.runtime.loading import graph_backend, runtime_device
from rainfusion_trt.runtime.plan import why_dense
from rainfusion_trt.runtime.schedule import check_sparsity

__all__ = ["LoadedGraph", "load_graph"]

logger = logging.getLogger("rainfusion_trt")


class LoadedGraph(GraphTransformer):
    """A loaded graph, called as the diffusers transformer that it is of; see `load_graph`."""

    def __init__(
        self, backend: Backend, model: VideoModel, graph: Graph, *, allow_dense: bool
    ) -> None:
        super().__init__(backend, model, graph.account.config)
        # Files that record no settings are of nodes that say them, or have version 1's.
        self.settings: AttentionSettings = graph.account.settings or OPERATOR_V1_DEFAULTS
        self.allow_dense = allow_dense
        self._asked = 0.0
        if self.settings.precision in self.precisions:
            self.precision = self.settings.precision
        else:
            logger.warning("%s is of 8 bits, and %s has 16 alone", graph.origin, backend.name)

    def set_sparsity(self, value: float) -> None:
        """Sparsity of the calls from now on, on torch's current stream, without waiting.

        Parameters
        ----------
        value : float
            In [0, 1); 0 is dense.

        Raises
        ------
        InvalidInputError
            It is outside.
        BackendUnavailableError
            The backend has dense attention only, and nobody allowed that.
        """
        value = check_sparsity(value, "sparsity")
        if value > 0.0 and not self.backend.sparse:
            refuse_dense(self.backend.name, allow_dense=self.allow_dense)
        self._asked = value
        self.sparsity.fill_(value)

    def set_precision(self, value: Precision) -> None:
        """Precision of attention of the calls from now on; at first what it was exported in.

        Raises
        ------
        UnsupportedError
            It is none of `precisions`.
        """
        self.precision = value

    def __setattr__(self, name: str, value: Any) -> None:
        """As of a module; a sparsity is set by `set_sparsity`, a precision is one that it has.

        Raises
        ------
        InvalidInputError, UnsupportedError
            Another sparsity or precision, as `Routing` takes them by assignment.
        """
        if name == "sparsity" and not isinstance(value, torch.Tensor):
            raise InvalidInputError(
                f"sparsity={value!r:.80} is no attribute to set here: call set_sparsity(...)"
            )
        if name == "precision" and value not in self.precisions:
            raise UnsupportedError(
                f"precision={value!r:.80} cannot be set: {self.backend.name} has "
                f"{', '.join(self.precisions)} of this file"
            )
        super().__setattr__(name, value)

    def forward(self, *, return_dict: bool = True, **forward_kwargs: Any) -> Any:
        """As of `GraphTransformer`; a clip that can only be dense is refused unless allowed.

        Raises
        ------
        DenseAttentionError
            It has too few frames for the sparsity that is set, for example.
        """
        if self._asked > 0.0 and not self.allow_dense:
            asked = self._asked, self.precision
            why = why_dense(self.model, self.settings, self, forward_kwargs, *asked)
            if why is not None:
                raise DenseAttentionError(why)
        return super().forward(return_dict=return_dict, **forward_kwargs)

    def close(self) -> None:
        """Free the engine; calls are refused afterwards."""
        self.closed = True
        self.backend.close()

    def __enter__(self) -> LoadedGraph:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@typed
def load_graph(
    path: str | Path,
    *,
    sparsity: float = 0.5,
    device: str | torch.device | None = None,
    cuda_graph: bool = False,
    allow_dense: bool = False,
) -> LoadedGraph:
    """Load an engine or ONNX file as a module that stands for the diffusers transformer.

    It takes the arguments of the transformer's forward and gives what that gives. The model's
    ``no_pipeline`` does not matter: whoever calls it drives it.

    Parameters
    ----------
    path
        A folder of ``build-engine``, or an exported ONNX file.
    sparsity
        Of its calls until `LoadedGraph.set_sparsity`, in [0, 1); 0 is dense.
    device
        By default the GPU where there is one, else the CPU.
    cuda_graph
        Replay each call of an engine as a CUDA graph.
    allow_dense
        Accept attention that is dense although a sparsity is asked: of a backend that has no other
        (ONNX Runtime), of a clip with too few frames. By default that is an error.

    Returns
    -------
    LoadedGraph
        A module of no weights, with `config`, `dtype` and `device`. `close` frees the engine.

    Raises
    ------
    InvalidInputError, EngineLoadError, UnsupportedError, BackendUnavailableError
        There is no such file, it is for several GPUs, or it cannot run here.

    Examples
    --------
    >>> pipe.transformer = load_graph("h3.engine", sparsity=0.8)  # doctest: +SKIP
    """
    path = Path(path)
    check_sparsity(sparsity, "sparsity")
    graph = graph_of_engine(path) if path.is_dir() else graph_of_onnx(path)
    graph.check_gpus(1)
    model = get_model(graph.model)
    name = graph.flavour or "onnxruntime"
    backend = graph_backend(name, path, graph, runtime_device(device), cuda_graph=cuda_graph)
    try:
        loaded = _kind(model)(backend, model, graph, allow_dense=allow_dense)
        loaded.set_sparsity(sparsity)
    except BaseException:
        backend.close()
        raise
    return loaded


def _kind(model: VideoModel) -> type[LoadedGraph]:
    """`LoadedGraph` with the signature of the transformer's forward.

    By that signature diffusers' modular blocks choose what they pass.
    """

    of_transformer = model.diffusers_class().forward
    signature = inspect.signature(of_transformer)

    @functools.wraps(of_transformer)
    def forward(self: LoadedGraph, *args: Any, **kwargs: Any) -> Any:
        # By the signature too an unknown argument is a TypeError, and none goes unnoticed.
        given = signature.bind_partial(self, *args, **kwargs).arguments
        del given["self"]
        return LoadedGraph.forward(self, **given)

    return type(LoadedGraph.__name__, (LoadedGraph,), {"forward": forward})
