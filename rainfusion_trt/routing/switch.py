"""``enable`` and ``disable``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from torch import nn

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoModel, get_model, model_of
from rainfusion_trt.models.given import GivenPlace, Grid, KvLen, TextTokens
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.operator.exact_frames import ExactFrames
from rainfusion_trt.operator.settings import AttentionSettings, Method, Precision, TextPlace
from rainfusion_trt.presets import Preset, preset_of
from rainfusion_trt.routing.find_sites import block_rows, find_sites
from rainfusion_trt.routing.own_module import OwnModule
from rainfusion_trt.routing.state import Routing
from rainfusion_trt.sigma_schedule import NoiseLevels, SigmaSchedule

_HANDLE = "_rainfusion_routing"  # on a transformer
_SITE = "_rainfusion_site"  # on a block


@typed
def enable(
    transformer: nn.Module,
    *,
    preset: str | None = None,
    scheduler: Any = None,
    sparsity: float | None = None,
    schedule: SigmaSchedule | None = None,
    method: Method | None = None,
    alpha: float = AttentionSettings.alpha,
    sink_frames: int = AttentionSettings.sink_frames,
    precision: Precision = AttentionSettings.precision,
    last_sink_frames: int = AttentionSettings.last_sink_frames,
    exact_frames: ExactFrames = AttentionSettings.exact_frames,
    dense_layers: Sequence[int] | None = None,
    model: str | VideoModel | None = None,
    grid: Grid | None = None,
    text: TextPlace = AttentionSettings.text,
    text_tokens: TextTokens = 0,
    kv_len: KvLen = None,
    allow_dense: bool = False,
) -> Routing:
    """Route the self-attention of a video transformer through RainFusion.

    A known one of diffusers needs nothing more; of any other, `grid` and `text` say where the video
    is. Works before and after ``torch.compile``, offloading, caches and context parallelism, and
    copies by ``copy.deepcopy`` have it too, each with a sparsity of its own.

    Parameters
    ----------
    transformer
        ``pipe.transformer``, compiled or not; its weights and its code stay untouched.
    preset
        "quality", "balanced" or "fast": sets `method`, `sparsity` and `schedule`. What else is
        given goes before it.
    scheduler
        ``pipe.scheduler``, which says how noisy each timestep is: for a preset or a schedule.
    sparsity
        As :func:`rainfusion_trt.rainfusion_attention`, by default 0.5; with a preset that of its
        schedule where it is not dense.
    schedule
        Sparsity by the noise of each forward's timestep, instead of one for all.
    method, alpha, sink_frames, precision, last_sink_frames, exact_frames
        As :func:`rainfusion_trt.rainfusion_attention`.
    dense_layers
        Self-attentions, numbered from 0, that are dense whatever the sparsity.
    model
        Registry name, needed only where the class and configuration do not tell; or a `VideoModel`
        of your own.
    grid
        Instead of `model`, for a module of any kind: its token grid (T, H, W) after patching, or
        the name of an argument or a function of the forward's keyword arguments that gives it, as
        numbers or as a tensor of that shape. Tokens are in t, h, w order.
    text, text_tokens, kv_len
        With `grid`: the place of the text in the sequence, "none", "first" or "last"; the number
        of its tokens, or a function of the keyword arguments; and what says how many tokens are
        valid, as :func:`rainfusion_trt.export.export_module` has them.
    allow_dense
        Run dense, log it and tell it in :meth:`Routing.report`, where an attention cannot be
        sparse: by a processor that is not diffusers' own, by an attention backend of its own, or
        since the clip has too few frames. Otherwise that is an error.

    Returns
    -------
    Routing
        Set its ``sparsity`` between calls, for example 0 for the first steps; that ends a schedule.
        Its ``precision`` may be set between calls too.

    Raises
    ------
    InvalidInputError
        Bad settings, an unknown `model`, or routing is on already.
    UnsupportedError
        The transformer belongs to no known model, and neither `model` nor `grid` is given.
    DenseAttentionError
        One of its self-attentions has a processor that is not diffusers' own.

    Notes
    -----
    Attentions that are not modules of diffusers with a known processor are found by the number of
    tokens that reach ``F.scaled_dot_product_attention``; torch.compile cannot trace these. A
    forward in which there is none raises DenseAttentionError and names the numbers it saw. That a
    grid has the right product, but its sizes, its patch or the place of the text are wrong, no
    number shows.

    Examples
    --------
    >>> routing = rainfusion_trt.enable(pipe.transformer, sparsity=0.5)
    >>> video = pipe("a red fox in the snow").frames[0]
    >>> rainfusion_trt.disable(pipe.transformer)
    """
    transformer = uncompiled(transformer)
    if routing_of(transformer) is not None:
        raise InvalidInputError(
            "RainFusion is on already for this transformer; set .sparsity of what enable() "
            "returned, or call disable() first"
        )
    place = _place(grid, text, text_tokens, kv_len)
    if _begin in transformer._forward_pre_hooks.values():
        raise _shares_blocks(transformer)
    described = _described(transformer, model, place)
    chosen = preset_of(preset)
    if method is None:
        method = AttentionSettings.method if chosen is None else chosen.method
    if dense_layers is None:
        dense_layers = () if chosen is None else chosen.dense_layers
    plan = _plan(chosen, sparsity, schedule, scheduler)
    settings = AttentionSettings.of(
        method=method,
        alpha=alpha,
        sink_frames=sink_frames,
        precision=precision,
        last_sink_frames=last_sink_frames,
        exact_frames=exact_frames,
    )
    routing = Routing(described, settings, 0.0, transformer, allow_dense=allow_dense)
    if isinstance(plan, SigmaSchedule):
        routing.follow(plan, NoiseLevels.of(scheduler))
    else:
        routing.sparsity = plan
    routing.sites = find_sites(transformer, routing)
    routing.rows = block_rows(transformer, routing.sites)
    routing.dense_layers = dense_layers
    _attach(routing, transformer)
    return routing


def _attach(routing: Routing, transformer: nn.Module) -> None:
    """Put processors and hooks in their places, from which `disable` takes them."""
    for site in routing.sites:
        if site.processor is not None:
            site.attention.set_processor(site.processor)
        setattr(site.block, _SITE, site)
        routing.handles.append(site.block.register_forward_pre_hook(_enter))
    # What `begin` enters by tokens has to be left after an error too; dynamo traces no such hook.
    routing.handles += [
        transformer.register_forward_pre_hook(_begin, with_kwargs=True),
        transformer.register_forward_hook(_end, always_call=routing.by_tokens),
    ]
    setattr(transformer, _HANDLE, routing)
    routing.transformer, routing.attached = transformer, True


def _place(
    grid: Grid | None, text: TextPlace, text_tokens: TextTokens, kv_len: KvLen
) -> GivenPlace | None:
    """The place of the video that was given by hand, if it was."""
    if grid is not None:
        return GivenPlace(grid, text, text_tokens, kv_len)
    if text != AttentionSettings.text or text_tokens != 0 or kv_len is not None:
        raise InvalidInputError(
            "text=, text_tokens= and kv_len= go with grid=, the token grid of a module of your "
            "own; a model that is known by name knows them itself"
        )
    return None


def _described(
    transformer: nn.Module, model: str | VideoModel | None, place: GivenPlace | None
) -> VideoModel | OwnModule:
    """Who knows the layout of the transformer's calls."""
    if place is not None:
        if model is not None:
            raise InvalidInputError("give model= or grid=, not both")
        return OwnModule(transformer, place)
    if model is not None:
        return model if isinstance(model, VideoModel) else get_model(model)
    try:
        return model_of(transformer)
    except UnsupportedError as error:
        raise UnsupportedError(
            f"{error}, or grid= (with text= and text_tokens=) to say where its video is; "
            "rainfusion_trt.routing.survey(transformer, ...), with the arguments of a call, says "
            "how long its attentions are and which grids fit"
        ) from error


def _plan(
    preset: Preset | None,
    sparsity: float | None,
    schedule: SigmaSchedule | None,
    scheduler: Any,
) -> float | SigmaSchedule:
    """The sparsity of all calls, or the schedule that gives that of each."""
    if schedule is not None and sparsity is not None:
        raise InvalidInputError("give sparsity or schedule, not both")
    if schedule is None and preset is not None:
        schedule = preset.schedule
        if sparsity is not None:
            schedule = dataclasses.replace(schedule, sparsity=sparsity)
    if (schedule is None) != (scheduler is None):
        raise InvalidInputError(
            "scheduler= goes with preset= or schedule=, which need it to tell how noisy a timestep "
            "is: pass scheduler=pipe.scheduler with one of them, or sparsity= alone"
        )
    if schedule is not None:
        return schedule
    return 0.5 if sparsity is None else sparsity


@typed
def disable(transformer: nn.Module) -> None:
    """Put the transformer's own attention back.

    Raises
    ------
    InvalidInputError
        RainFusion is not on, or on for another one of which this is a ``copy.copy``.
    """
    transformer = uncompiled(transformer)
    routing = routing_of(transformer)
    if routing is None:
        raise InvalidInputError("RainFusion is not on for this transformer; call enable() first")
    if routing.transformer is not transformer:
        raise _shares_blocks(transformer)
    delattr(transformer, _HANDLE)
    routing.transformer, routing.attached = None, False  # also for a copy.copy, which has it too
    for handle in routing.handles:
        handle.remove()
    for site in routing.sites:
        delattr(site.block, _SITE)
        if site.processor is not None and site.attention.processor is site.processor:
            site.attention.set_processor(site.processor.original)


@typed
def routing_of(transformer: nn.Module) -> Routing | None:
    """What :func:`enable` returned for a transformer, or its twin for a copy of one."""
    routing = uncompiled(transformer).__dict__.get(_HANDLE)
    return routing if routing is not None and routing.attached else None


def _shares_blocks(transformer: nn.Module) -> InvalidInputError:
    """What is wrong with one of two transformers that have all but their attributes in common."""
    kind = type(transformer).__name__
    return InvalidInputError(
        f"this {kind} shares its blocks with the {kind} that enable() was called for, as of "
        "copy.copy: use that one in its place, or copy.deepcopy for one with a state of its own"
    )


def _begin(transformer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    routing = getattr(transformer, _HANDLE, None)
    if routing is None or not routing.attached:
        raise _shares_blocks(transformer)
    routing.begin(transformer, args, kwargs)


def _enter(block: Any, args: tuple[Any, ...]) -> None:
    block._rainfusion_site.entered = True


def _end(transformer: Any, args: tuple[Any, ...], output: Any) -> None:
    if output is None:  # the forward has failed, and its own error says why
        if hasattr(transformer, _HANDLE):
            transformer._rainfusion_routing.leave_route()
    else:
        transformer._rainfusion_routing.end(transformer)
