"""``Routing``: what the processors of a transformer share, and the account of its forwards.

`begin` and `end` run around every forward, also inside a graph that ``torch.compile`` makes of it.
There they may read only what does not change from step to step: everything read becomes a guard.
That is why the sparsity is a tensor, and why processors note what they did without reading it.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.argument_types import shown
from rainfusion_trt.errors import (
    DenseAttentionError,
    InvalidInputError,
    NotSparseError,
    RainFusionError,
    UnsupportedError,
)
from rainfusion_trt.models import AttentionLayout, VideoModel, get_model, model_names
from rainfusion_trt.models.transformer import config_of
from rainfusion_trt.operator.settings import AttentionSettings, Precision
from rainfusion_trt.operator.sparse_grid import explain_obstacle, obstacle_to_sparsity
from rainfusion_trt.routing.density import DensityMeter
from rainfusion_trt.routing.lengths import advice, shapes_of
from rainfusion_trt.routing.own_module import OwnModule
from rainfusion_trt.routing.parallel import check_forward
from rainfusion_trt.routing.report import RoutingReport
from rainfusion_trt.routing.route import AttentionRoute
from rainfusion_trt.routing.site import Site, Tokens
from rainfusion_trt.routing.site_checks import check_blocks, check_ran, check_sites, report_of
from rainfusion_trt.sigma_schedule import NoiseLevels, SigmaSchedule

_log = logging.getLogger(__name__)


class Routing:
    """What :func:`enable` returns: the sparsity of the next calls and what was routed.

    Attributes
    ----------
    model : VideoModel or OwnModule
        How the transformer's inputs are read.
    settings : AttentionSettings
        Fixed until :func:`disable`, but for their precision.
    allow_dense : bool
        Whether an attention that cannot be sparse runs dense instead of raising an error.
    meter : DensityMeter, optional
        Measures what attentions compute, where it is set.
    kind : str
        The transformer's class, for errors.
    """

    def __init__(
        self,
        model: VideoModel | OwnModule,
        settings: AttentionSettings,
        sparsity: float,
        transformer: nn.Module,
        *,
        allow_dense: bool = False,
    ) -> None:
        self.model = model
        self.settings = settings
        # One object of each: torch.compile takes a graph again for what it has seen before.
        self._in_precision = {settings.precision: settings}
        self.allow_dense = allow_dense
        self.meter: DensityMeter | None = None
        self.tokens: Tokens | None = None  # of the forward that runs
        self.sites: list[Site] = []
        self.compiled: tuple[nn.Module, ...] = ()  # blocks, by `compile_blocks`
        self.rows: dict[str, int] = {}  # of blocks, and how many these had
        self.handles: list[Any] = []  # of our hooks
        # Whose hooks these are: a deep copy has that copy here, one by copy.copy has the first one.
        self.transformer: nn.Module | None = None
        self.attached = False  # told by itself, as a graph of torch.compile asks
        self.kind = type(transformer).__name__
        # Without self: a graph of torch.compile cannot bind arguments by a signature.
        self._parameters = tuple(inspect.signature(type(transformer).forward).parameters)[1:]
        self._head_size = model.head_size(config_of(transformer))
        self._route: AttentionRoute | None = None  # of the latest forward, where it is by tokens
        self._shapes: dict[str, tuple[int, ...]] = {}  # of its arguments
        self._dense_grid = False
        self._thread: int | None = None  # whose forward runs; None where a graph has begun it
        self._logged: set[str] = set()
        # While diffusers loads a checkpoint parameters are on the meta device, and factories too.
        device = next(iter(transformer.parameters()), torch.empty(0, device="cpu")).device
        device = torch.device("cpu") if device.type == "meta" else device
        self._tensor = torch.tensor([0.0], dtype=torch.float32, device=device)
        self._plan: tuple[SigmaSchedule, NoiseLevels] | None = None
        self._scheduled: Tensor | None = None  # sparsity of the forward that runs, by the plan
        self._dense_layers: tuple[int, ...] = ()
        self.sparsity = sparsity

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles of the transformer; a model of the registry goes by its name."""
        state = {**self.__dict__, "_route": None, "_scheduled": None, "_thread": None}
        if self.model.name in model_names() and get_model(self.model.name) is self.model:
            state["model"] = self.model.name
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.model, str):
            self.model = get_model(self.model)

    # -- for users ------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """Of the next forward calls; of a schedule the largest."""
        return self._sparsity

    @sparsity.setter
    def sparsity(self, value: float) -> None:
        given: Any = value
        if not isinstance(given, Real) or not 0.0 <= float(given) < 1.0:
            raise InvalidInputError(
                f"sparsity={shown(given)} must be in [0, 1); 0 is dense attention"
            )
        self._sparsity = float(value)
        self._plan = self._scheduled = None
        # In place, since CUDA graphs read this very tensor. One that came to the device in a
        # forward under inference_mode is written under it.
        with torch.inference_mode(self._tensor.is_inference()), torch.no_grad():
            self._tensor.fill_(self._sparsity)

    def follow(self, schedule: SigmaSchedule, levels: NoiseLevels) -> None:
        """Take the sparsity of each forward from its timestep, until `sparsity` is set.

        Read and computed on the device.
        """
        self.sparsity = schedule.peak
        self._plan = schedule, levels

    @property
    def precision(self) -> Precision:
        """Of the next forward calls: "16bit" or "8bit". The host's choice, for each of them."""
        return self.settings.precision

    @precision.setter
    def precision(self, value: Precision) -> None:
        if value not in self._in_precision:
            self._in_precision[value] = self.settings.replace(precision=value)
        self.settings = self._in_precision[value]

    @property
    def dense_layers(self) -> tuple[int, ...]:
        """Self-attentions, numbered from 0, that are dense whatever the sparsity."""
        return self._dense_layers

    @dense_layers.setter
    def dense_layers(self, layers: Iterable[int]) -> None:
        if not isinstance(layers, Iterable):
            raise InvalidInputError(
                f"dense_layers={shown(layers)}: give numbers from 0 on in a row, such as (0, 1)"
            )
        layers = tuple(layers)
        for layer in layers:
            if type(layer) is not int or layer < 0:
                raise InvalidInputError(f"dense_layers has {layer!r}; give numbers from 0 on")
            # Where attentions are found by their tokens, how many there are is not known yet.
            if self.sites and layer >= len(self.sites):
                raise InvalidInputError(
                    f"dense_layers has {layer}, and this transformer has {len(self.sites)} "
                    f"self-attentions: give numbers from 0 to {len(self.sites) - 1}"
                )
        self._dense_layers = layers
        for number, site in enumerate(self.sites):
            if site.processor is not None:
                site.processor.exact = number in layers

    @property
    def routed(self) -> int:
        """Self-attentions that ran as RainFusion attention in the latest forward."""
        return len(self.report().routed)

    def report(self) -> RoutingReport:
        """What the self-attentions of the latest forward were."""
        if self.by_tokens:
            return RoutingReport(*self._by_tokens_report())
        return report_of(self.sites, dense_grid=self._dense_grid)

    # -- around a forward -------------------------------------------------------------------------

    @property
    def sparsity_tensor(self) -> Tensor:
        """float32 [1], on the device of the latest forward's inputs."""
        return self._tensor if self._scheduled is None else self._scheduled

    def begin(
        self, transformer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """Read what a forward attends over and see that all its self-attentions are ours."""
        if self._route is not None and self._route.entered:
            self._check_thread(begins=True)
        self._thread = None if torch.compiler.is_compiling() else threading.get_ident()
        # Cut to one length: to torch.compile in PyTorch 2.9 every zip is strict.
        named = zip(self._parameters[: len(args)], args[: len(self._parameters)], strict=True)
        call = {**dict(named), **kwargs}
        try:
            layout = self.model.layout(transformer, call)
        except NotSparseError as error:
            self._begin_dense(transformer, call, str(error))
            return
        except KeyError as missing:
            raise UnsupportedError(
                f"{self.model.name} is told its tokens by {missing}, which this call of "
                f"{self.kind} does not have; choose model= by what the transformer takes"
            ) from None
        padded = layout.kv_len is not None
        self.tokens = Tokens(layout.grid, layout.text, layout.text_tokens, padded)
        place = layout.grid.device
        # The transformer was moved since. Of the meta device, where shapes are asked for, it would
        # come back without its value.
        if self._tensor.device != place and place.type != "meta":
            self._tensor = self._tensor.to(place)
        if self.meter is not None:
            self.meter.begin(layout.grid)
        if self._plan is not None:
            self._scheduled = self._sparsity_by_plan(*self._plan, call.get("timestep"), place)
        self._check_grid()
        check_sites(self)
        check_forward(self, transformer, call)
        if self.by_tokens:
            self.model.check_lengths(layout, call)
            self._shapes = shapes_of(call)
            self._enter_route(layout)

    def _sparsity_by_plan(
        self, schedule: SigmaSchedule, levels: NoiseLevels, timestep: Any, device: torch.device
    ) -> Tensor:
        if timestep is None:
            raise InvalidInputError(
                "the sparsity follows a schedule, and this call has no timestep; set the sparsity "
                "of what enable() returned"
            )
        timestep = torch.as_tensor(timestep, device=device)
        # The noisiest, where tokens have timesteps of their own.
        noisiest = timestep.amax().view(1)
        sigma = noisiest if self.model.timesteps_are_sigmas else levels.sigma(noisiest)
        return schedule.at(sigma)

    def _begin_dense(self, transformer: nn.Module, call: Mapping[str, Any], message: str) -> None:
        """A forward in which nothing can be sparse: every attention is diffusers' own."""
        if self.by_tokens or self._sparsity > 0:
            self.refuse_dense(message)
        self.tokens, self._scheduled, self._dense_grid = None, None, False
        check_sites(self)
        check_forward(self, transformer, call)
        for site in self.sites:
            if site.processor is not None:
                site.processor.dense = True

    def end(self, transformer: nn.Module) -> None:
        """See that every self-attention of the blocks that ran was RainFusion attention."""
        self._check_thread()
        if self.by_tokens and self.leave_route():
            self._check_route(transformer)
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            self.tokens = None  # else a backward pass may run a checkpointed block again
        check_ran(self)
        if not torch.compiler.is_compiling():
            check_blocks(self, transformer)

    # -- transformers without attention modules of diffusers ------------------------------------

    @property
    def by_tokens(self) -> bool:
        """Whether attention is found by its number of tokens, for want of modules to replace it."""
        return not self.sites

    def _enter_route(self, layout: AttentionLayout) -> None:
        if torch.compiler.is_compiling():
            raise UnsupportedError(
                f"{self.kind} has no attention modules of diffusers, and what finds its attention "
                "by tokens cannot be compiled; run it without torch.compile"
            )
        self._route = AttentionRoute(
            layout, self.sparsity_tensor, self.settings, dense_layers=self._dense_layers
        )
        self._route.__enter__()

    def leave_route(self) -> bool:
        """End what :meth:`begin` entered, also where the forward has failed; False without that."""
        if self._route is None or not self._route.entered or self._is_of_another_thread():
            return False
        self._route.__exit__(None, None, None)
        return True

    def _check_route(self, transformer: nn.Module) -> None:
        """What only the forward shows: whether there was such attention, and its head size."""
        assert self._route is not None
        if self._route.count == 0:
            self.refuse_dense(
                f"no self-attention of {self.kind} was routed: none of its calls reached "
                f"F.scaled_dot_product_attention with the {self._route.tokens} tokens of "
                f"{self.model.name}; {advice(transformer, self._route.others, self._shapes)}; call "
                "disable(), then enable() with the model= or the grid= and text= that it works like"
            )
        elif self._head_size is None:  # no configuration says it; whether windows fit is told now
            self._head_size = self._route.head_size
            self._check_grid()

    def _by_tokens_report(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        names = tuple(f"attention {i}" for i in range(self._route.count if self._route else 0))
        return ((), names, ()) if self._dense_grid else (names, (), ())

    # -- checks -----------------------------------------------------------------------------------

    def _check_grid(self) -> None:
        """A grid in which nothing can be sparse is dense, with permission."""
        self._dense_grid = False
        assert self.tokens is not None
        grid = self.tokens.grid.shape
        obstacle = obstacle_to_sparsity(grid, self.settings, self._head_size)
        # The number is read only here: a graph of torch.compile would be bound to it.
        if obstacle is not None and self._sparsity > 0:
            self._dense_grid = True
            self.refuse_dense(explain_obstacle(obstacle, grid, self.settings, self._sparsity))

    def _check_thread(self, *, begins: bool = False) -> None:
        """Refuse a forward beside that of another thread: what they are told is kept here.

        Where gradients are on, a backward pass may run checkpointed blocks again, on a GPU in a
        thread of its own.
        """
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and not begins):
            return
        if self._is_of_another_thread():
            raise RainFusionError(
                f"two threads call one {self.kind} with RainFusion at the same time; let them take "
                "turns, by a lock around each generation, or give each a copy.deepcopy of it"
            )

    def _is_of_another_thread(self) -> bool:
        return self._thread is not None and self._thread != threading.get_ident()

    def refuse_dense(self, message: str) -> None:
        """Raise `message` as an error, or log it once where dense attention is permitted."""
        if not self.allow_dense:
            raise DenseAttentionError(f"{message}; allow_dense=True runs it dense")
        if not torch.compiler.is_compiling() and message not in self._logged:
            self._logged.add(message)
            _log.warning("%s (dense, as allow_dense=True permits)", message)

    def running_tokens(self) -> Tokens:
        """What the forward that runs attends over."""
        self._check_thread()
        if self.tokens is None:
            raise UnsupportedError(
                f"an attention of {self.kind} ran outside of the transformer's forward, so that "
                "its tokens are unknown; call the transformer itself, not its forward or its blocks"
            )
        return self.tokens
