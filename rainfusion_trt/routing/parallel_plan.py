"""``cp_plan``: how diffusers cuts the tokens of a transformer for several devices."""

from __future__ import annotations

from typing import Any

from torch import nn

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models import VideoModel, model_of
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.routing.parallel import check_class
from rainfusion_trt.routing.switch import routing_of


@typed
def cp_plan(transformer: nn.Module) -> dict[str, Any]:
    """The plan with which ``transformer.enable_parallelism`` runs an enabled transformer.

    That of diffusers where it has one (Wan). Wan VACE and SkyReels V2 are cut where graphs for
    several GPUs are. For the others (CogVideoX, HunyuanVideo, HunyuanVideo-1.5, Allegro) video
    and text are cut at the first block, and the video is put together behind the last projection.
    Only the attention of :func:`rainfusion_trt.enable` puts such a sequence in order, so these
    plans need it, at whatever sparsity. Rotary tables stay whole there; the attention takes its
    part.

    Parameters
    ----------
    transformer
        ``pipe.transformer``, compiled or not.

    Returns
    -------
    dict
        For ``enable_parallelism(cp_plan=...)``.

    Raises
    ------
    UnsupportedError
        The transformer is of a class that is not known to work on several devices.

    Examples
    --------
    >>> rainfusion_trt.enable(pipe.transformer, sparsity=0.5)
    >>> config = ContextParallelConfig(ulysses_degree=2, ulysses_anything=True)
    >>> plan = rainfusion_trt.cp_plan(pipe.transformer)
    >>> pipe.transformer.enable_parallelism(config=config, cp_plan=plan)
    """
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    transformer = uncompiled(transformer)
    check_class(transformer)
    known = getattr(transformer, "_cp_plan", None)
    if known is not None:
        return dict(known)
    routing = routing_of(transformer)
    known_by = None if routing is None else routing.model
    model = known_by if isinstance(known_by, VideoModel) else model_of(transformer)
    if model.text == "none" and model.token_cuts is not None:
        return _as_for_engines(model.token_cuts)
    if not hasattr(transformer, "transformer_blocks"):
        raise UnsupportedError(
            f"{type(transformer).__name__} of {model.name} is not known to work on several "
            "devices, where its blocks get something for every token: run it on one device"
        )
    streams = ["hidden_states"]
    if model.text != "none":
        streams.append("encoder_hidden_states")
    tokens = ContextParallelInput(split_dim=1, expected_dims=3)
    return {
        "transformer_blocks.0": dict.fromkeys(streams, tokens),
        "proj_out": ContextParallelOutput(gather_dim=1, expected_dims=3),
    }


def _as_for_engines(cuts: TokenCuts) -> dict[str, Any]:
    """The plan of a model without text among its tokens, whose tables are two: cos and sin."""
    from diffusers.models._modeling_parallel import ContextParallelInput, ContextParallelOutput

    plan: dict[str, Any] = {}
    for (module, argument), axis in cuts.arguments.items():
        tokens = ContextParallelInput(split_dim=axis, expected_dims=3)
        plan.setdefault(module, {})[argument] = tokens
    for module, axis in cuts.outputs.items():
        table = ContextParallelInput(split_dim=axis, expected_dims=4, split_output=True)
        plan[module] = {0: table, 1: table}
    plan[cuts.gathered] = ContextParallelOutput(gather_dim=1, expected_dims=3)
    return plan
