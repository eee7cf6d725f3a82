"""What stands in the place of ``pipe.transformer``, and how its sparsity is set."""

from __future__ import annotations

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.graph_file import BITS, BITS_INPUT, OWN_INPUTS, PART_INPUT
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.operator.settings import Precision
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.calls import calls_through, contexts_told
from rainfusion_trt.runtime.report import CallReport, Moment
from rainfusion_trt.step_cache.cache import StepCache

if TYPE_CHECKING:
    from rainfusion_trt.parallel.exchange import Exchange

Before = Callable[[Mapping[str, Any]], Moment]
After = Callable[[CallReport], None]


class Denoiser(ABC):
    """A transformer inside a diffusers pipeline whose sparsity can be set between calls.

    Attributes
    ----------
    name : str
        The backend's name.
    device : torch.device
        Where it computes.
    sparse : bool
        Whether setting the sparsity has an effect.
    precisions : tuple of str
        Those that its attention can compute in.
    component : object
        What `pipe.transformer` is set to.
    """

    name: str
    device: torch.device
    sparse: bool = True
    precisions: tuple[Precision, ...] = ("16bit",)
    component: Any

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Self-attentions, numbered from 0, that are dense whatever the sparsity."""
        return ()

    @property
    def components(self) -> tuple[Any, ...]:
        """What the pipeline's transformers are set to, in the order of the model's components."""
        return (self.component,)

    @abstractmethod
    def set_sparsity(self, value: float) -> None:
        """Sparsity of the calls from now on, on torch's current stream, without waiting."""

    def set_precision(self, value: Precision) -> None:
        """Precision of the calls from now on, one of `precisions`.

        Raises
        ------
        UnsupportedError
            It is none of these.
        """
        if value not in self.precisions:
            raise UnsupportedError(
                f"precision={value!r} cannot be set: {self.name} has {', '.join(self.precisions)}"
            )

    @abstractmethod
    def observe(
        self, before: Before, after: After, cache: StepCache | None = None
    ) -> AbstractContextManager[None]:
        """A context for a generation, with a hook around every call of the transformer.

        Parameters
        ----------
        before
            Gets the keyword arguments right before the call, and says where it comes.
        after
            Gets what the call ran right after it.
        cache
            May answer calls in the transformer's place.
        """

    def keep_dense(self, layers: Sequence[int]) -> None:
        """Let these self-attentions, numbered from 0, be dense whatever the sparsity.

        Raises
        ------
        UnsupportedError
            It has one sparsity for all.
        """
        given: Any = layers
        if not isinstance(given, Iterable) or tuple(given):
            raise UnsupportedError(
                f"dense_layers={shown(given)} cannot reach an exported graph, which has one "
                f"sparsity for all its attentions, and the backend here is {self.name}: leave it "
                "out, or use backend='torch'"
            )

    @abstractmethod
    def describe(self) -> str:
        """One line for the log."""

    def close(self) -> None:  # noqa: B027  (nothing to free is a valid answer)
        """Undo or free what it holds."""


class OneDenoiser(Denoiser):
    """One transformer, a module whose calls are watched."""

    @abstractmethod
    def report(self) -> CallReport:
        """What the latest call of the transformer ran."""

    @contextmanager
    def observe(
        self, before: Before, after: After, cache: StepCache | None = None
    ) -> Iterator[None]:
        def around(inner: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any, **kwargs: Any) -> Any:
                named = {"hidden_states": args[0], **kwargs} if args else kwargs
                moment = before(named)
                if cache is None:
                    output, ran = inner(*args, **kwargs), self.report()
                else:
                    run = functools.partial(inner, *args, **kwargs)
                    output, ran = cache.call(self.component, moment, named, run, self.report)
                after(ran)
                return output

            return call

        with ExitStack() as stack:
            stack.enter_context(calls_through(self.component, around))
            if cache is not None:
                stack.enter_context(contexts_told(self.component, cache.named))
            yield


class GraphTransformer(nn.Module):
    """Stands for a diffusers transformer and runs an exported graph.

    It has what diffusers pipelines use of a transformer: `config`, `dtype`, `device`,
    `cache_context` and the call. As a module it tells the pipeline where to compute and takes its
    turn in diffusers' offloading, which asks modules where their first parameter is: an empty one
    goes to and fro, the engine stays where it is.

    Parameters
    ----------
    backend
        The loaded graph.
    model
        Turns keyword arguments of the transformer's forward into graph inputs.
    config
        The transformer's configuration; values left out are the class's defaults.
    """

    def __init__(self, backend: Backend, model: VideoModel, config: Mapping[str, Any]) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.backend = backend
        self.model = model
        self.config = FrozenDict(complete_config(model, config))
        missing = [name for name in model.outputs if name not in backend.outputs]
        if missing:
            raise InvalidInputError(
                f"{model.name} gives {', '.join(model.outputs)}, and the graph has no output "
                f"{', '.join(missing)}: export the model again"
            )
        self.device = backend.device
        self.dtype = next(
            info.dtype for info in backend.inputs.values() if info.dtype.is_floating_point
        )
        self._arguments = frozenset(inspect.signature(model.diffusers_class().forward).parameters)
        self.closed = False
        self.exchange: Exchange | None = None
        self.precision: Precision = "16bit"
        self._part: Tensor | None = None
        for name, part in model.parts(self.config).items():
            setattr(self, name, part)
        self.place = nn.Parameter(torch.empty(0, device=backend.device), requires_grad=False)
        # One tensor for good, and no buffer that `to` would replace: a captured CUDA graph holds
        # its address.
        self.sparsity = torch.zeros(1, dtype=torch.float32, device=backend.device)

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Those that its attention can compute in."""
        both = self.backend.sparse and BITS_INPUT in self.backend.inputs
        return ("16bit", "8bit") if both else ("16bit",)

    def cache_context(self, *_: Any, **__: Any) -> Any:
        """diffusers' caches skip layers, which a graph cannot do; the context does nothing."""
        return nullcontext()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(
                f"an exported transformer has no {name!r}: change the diffusers transformer before "
                "the export, or use backend='torch'"
            ) from None

    def forward(self, *, return_dict: bool = True, **forward_kwargs: Any) -> Any:
        """One denoising call with the keyword arguments of the diffusers transformer.

        Returns
        -------
        tuple of Tensor or the transformer's output class
            The outputs of the model, in the graph's output dtype.

        Raises
        ------
        InvalidInputError
            A shape outside what the graph takes, tensors on another device, an argument that the
            transformer's class does not have, or it is closed.
        UnsupportedError
            `attention_kwargs`, which only reach PyTorch modules.
        """
        if self.closed:
            raise InvalidInputError(
                "this exported transformer is closed, or the Pipeline that it belongs to: "
                "make a new one"
            )
        if forward_kwargs.pop("attention_kwargs", None):
            raise UnsupportedError(
                "attention_kwargs cannot reach an exported transformer: leave them out, or use "
                "backend='torch'"
            )
        self._check_names(forward_kwargs)
        feed = {name: self._fit(name, t) for name, t in self._graph_inputs(forward_kwargs).items()}
        feed["sparsity"] = self.sparsity
        if PART_INPUT in self.backend.inputs:
            feed[PART_INPUT] = self._own_part(forward_kwargs)
        if BITS_INPUT in self.backend.inputs:
            bits = BITS[self.precision]
            feed[BITS_INPUT] = torch.zeros(bits, dtype=torch.float32, device=self.device)
        feed = {name: feed[name] for name in self.backend.inputs}
        kind = (id(self), *(tensor.shape for tensor in feed.values()))
        with nullcontext() if self.exchange is None else self.exchange.call(kind):
            outputs = self.backend.run(feed)
        # Copied, because guidance by two calls keeps the first result over the second call.
        copies = tuple(outputs[name].clone() for name in self.model.outputs)
        return self.model.result(copies) if return_dict else copies

    def _check_names(self, forward_kwargs: Mapping[str, Any]) -> None:
        """Refuse what the transformer's class would: nothing here would read it."""
        unknown = [name for name in forward_kwargs if name not in self._arguments]
        if unknown:
            raise InvalidInputError(
                f"{self.model.name}: an exported transformer takes no {', '.join(unknown)}, as "
                f"{self.model.diffusers_class().__name__} does not; leave it out"
            )

    def _graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        feed = self.model.graph_inputs(forward_kwargs)
        wanted = [name for name in self.backend.inputs if name not in OWN_INPUTS]
        missing = [name for name in wanted if name not in feed]
        if missing:
            raise InvalidInputError(
                f"{self.model.name}: the graph takes {', '.join(wanted)}, the diffusers pipeline "
                f"gave no {', '.join(missing)}: was it exported from another model?"
            )
        self.model.check_extents(feed)
        self.model.check_room(feed, self.backend.profiles)
        return {name: feed[name] for name in wanted}

    def share_tokens(self, exchange: Exchange) -> None:
        """Compute only a part of the tokens from now on, as one of several GPUs."""
        self.exchange = exchange

    def _own_part(self, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """A tensor as long as this GPU has tokens of the call's video."""
        tokens = math.prod(self.model.grid_shape(self, forward_kwargs))
        if self.exchange is not None:
            share = self.exchange.share
            tokens = (tokens + share.parts - 1 - share.rank) // share.parts
        if self._part is None or self._part.numel() != tokens:
            self._part = torch.zeros(tokens, dtype=torch.float32, device=self.device)
        return self._part

    def _fit(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in the graph's dtype; moves nothing between devices."""
        dtype = self.backend.inputs[name].dtype
        fitted = tensor.to(dtype).contiguous()
        # Graphs exported by version 0.2 and before take some timesteps as integers.
        if tensor.is_floating_point() and not dtype.is_floating_point and (fitted != tensor).any():
            raise InvalidInputError(
                f"this graph takes {name} in {str(dtype).removeprefix('torch.')}, and "
                f"{tensor.flatten()[0].item():g} is no whole number: export the model again, whose "
                "graph then takes fractions, or use a scheduler with whole timesteps"
            )
        return fitted


class GraphDenoiser(OneDenoiser):
    """An exported graph in the place of the transformer.

    Parameters
    ----------
    backend, model, config
        See `GraphTransformer`.
    attentions
        How many RainFusionAttention nodes or layers the graph has; by default the model's number.
    """

    def __init__(
        self,
        backend: Backend,
        model: VideoModel,
        config: Mapping[str, Any],
        attentions: int | None = None,
    ) -> None:
        self.backend = backend
        self.name = backend.name
        self.device = backend.device
        self.sparse = backend.sparse
        self.component = GraphTransformer(backend, model, config)
        self.precisions = self.component.precisions
        if attentions is None:
            attentions = model.attention_count(self.component.config)
        self._attentions = attentions

    def set_sparsity(self, value: float) -> None:
        self.component.sparsity.fill_(value)

    def set_precision(self, value: Precision) -> None:
        super().set_precision(value)
        self.component.precision = value

    def report(self) -> CallReport:
        count = self._attentions
        if not self.sparse:
            return CallReport(0, count)
        return CallReport(count, precision=self.component.precision)

    def describe(self) -> str:
        return self.backend.describe()

    def close(self) -> None:
        self.component.closed = True
        self.backend.close()


def complete_config(model: VideoModel, config: Mapping[str, Any]) -> dict[str, Any]:
    """The transformer's configuration with the defaults of its diffusers class filled in."""
    import diffusers

    signature = inspect.signature(getattr(diffusers, model.transformer_class).__init__)
    defaults = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return {**defaults, **config}
