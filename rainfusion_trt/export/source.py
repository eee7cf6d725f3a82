"""The source of an export: a module, its inputs and the layout of its self-attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export.lora import fused_loras
from rainfusion_trt.graph_file import PART_AXIS, PART_INPUT, FusedLora
from rainfusion_trt.models import AttentionLayout, VideoModel, VideoSize
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.weights_hash import weights_hash

Outputs = Tensor | tuple[Tensor, ...]
Axes = Mapping[str, Mapping[int, str]]


def all_outputs(given: Outputs) -> tuple[Tensor, ...]:
    """What a call gives, also where one tensor stands alone."""
    return (given,) if isinstance(given, Tensor) else tuple(given)


@dataclass(frozen=True)
class GraphSource:
    """A module with everything that is needed to trace it.

    Attributes
    ----------
    name
        Name in the metadata.
    module
        The module to trace. Its parameters become the weights.
    dtype
        Element type of its attention, for the metadata.
    inputs
        Example inputs of the graph in their order, without `sparsity`.
    axes
        Axes that may vary, as {input: {axis: name}}; empty for a graph of one size.
    arguments
        Turns graph inputs into the keyword arguments of one forward call.
    call
        The forward call to trace.
    eager
        The forward call that a comparison takes as reference.
    layout
        Finds grid, text place and valid length of self-attention from the call's keyword arguments.
    attentions
        Expected number of self-attentions; None accepts any but 0.
    within
        The modules whose attention they are; where there are none, their tokens tell them.
    outputs
        Names of what a call gives, in its order.
    identity
        Component, configuration, size and hashes of the weights for :class:`GraphAccount`; empty
        outside the registry.
    loras
        LoRAs added to its weights.
    cuts
        Where its tokens are cut for several GPUs; `inputs` has a part then.
    """

    name: str
    module: nn.Module
    dtype: torch.dtype
    inputs: dict[str, Tensor]
    axes: Axes
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    call: Callable[[dict[str, Any]], Outputs]
    eager: Callable[[dict[str, Any]], Outputs]
    layout: Callable[[dict[str, Any]], AttentionLayout]
    attentions: int | None = None
    within: tuple[nn.Module, ...] = ()
    outputs: tuple[str, ...] = ("sample",)
    identity: Mapping[str, Any] = field(default_factory=dict)
    loras: tuple[FusedLora, ...] = ()
    cuts: TokenCuts | None = None


def source_of_model(
    model: VideoModel,
    transformer: nn.Module,
    size: VideoSize,
    *,
    batch: int | None = None,
    dynamic: bool = False,
    component: str | None = None,
    parallel: bool = False,
) -> GraphSource:
    """Make the source of a registered model; prepares the transformer for `size`.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The model cannot be traced with this batch, size or shapes.
    """
    if parallel:
        check_has_cuts(model)
    component = model.component(component)
    if batch is None:
        batch = 2 if model.guidance_batch else 1
    inputs = _example_inputs(model, transformer, size, batch=batch, dynamic=dynamic)
    model.prepare(transformer, size)
    config = cast("Mapping[str, Any]", transformer.config)
    public = {k: v for k, v in config.items() if not k.startswith("_")}
    attentions = model.attention_count(config)
    own = tuple(m for n, m in transformer.named_modules() if model.is_self_attention(n, m))

    def layout(call: dict[str, Any]) -> AttentionLayout:
        found = model.layout(transformer, call)
        if len(own) != attentions:
            model.check_lengths(found, call)
        return found

    axes = dict(model.dynamic_axes()) if dynamic else {}
    if parallel:
        # As many tokens as there are, so that the graph can be compared on one processor.
        tokens = model.extents(config, size, batch)["video_tokens"]
        device = cast("torch.device", transformer.device)
        inputs[PART_INPUT] = torch.zeros(tokens, dtype=torch.float32, device=device)
        axes[PART_INPUT] = {0: PART_AXIS}

    return GraphSource(
        name=model.name,
        module=transformer,
        dtype=cast("torch.dtype", transformer.dtype),
        inputs=inputs,
        axes=axes,
        arguments=model.forward_kwargs,
        call=partial(model.call, transformer),
        eager=partial(model.eager, transformer),
        layout=layout,
        attentions=attentions,
        within=own if len(own) == attentions else (),
        outputs=model.outputs,
        identity={
            "component": component,
            "config": public,
            "size": str(size),
            "weights_sha256": weights_hash(transformer),
        },
        loras=fused_loras(transformer),
        cuts=model.token_cuts if parallel else None,
    )


def check_has_cuts(model: VideoModel) -> None:
    """Refuse a graph for several GPUs of a model that is not known to be cut anywhere."""
    if model.token_cuts is None:
        raise UnsupportedError(
            f"{model.name} has no graph for several GPUs: leave out --parallel; "
            "docs/parallel.md says which models share a clip in PyTorch"
        )


def _example_inputs(
    model: VideoModel, transformer: nn.Module, size: VideoSize, *, batch: int, dynamic: bool
) -> dict[str, Tensor]:
    """Make example inputs and check that the model can be traced with them."""
    if type(batch) is not int or batch < 1:
        raise InvalidInputError(f"batch={batch!r} must be 1 or more")
    if dynamic and not model.dynamic_axes():
        raise UnsupportedError(
            f"{model.name} computes its position table for one size, which is baked into the "
            "graph: export it with --fixed, once for every size"
        )
    if dynamic:
        batch = max(batch, 2)  # torch.export would fix an extent of 1
    device = cast("torch.device", transformer.device)
    inputs = model.example_inputs(transformer, size, batch=batch, device=device)
    if dynamic:
        check_axes(inputs, model.dynamic_axes(), f"size {size}")
    return inputs


def check_axes(inputs: Mapping[str, Tensor], axes: Axes, origin: str) -> None:
    """Refuse an extent of 1 for a dynamic axis: torch.export would fix it."""
    for name, names in axes.items():
        for axis, axis_name in names.items():
            if inputs[name].shape[axis] < 2:
                raise InvalidInputError(
                    f"{origin} gives 1 for the dynamic axis {axis_name} of {name}; trace with a "
                    "larger clip, the graph takes smaller ones too"
                )
