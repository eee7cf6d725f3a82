"""Models the project knows, by name. A new one is a file here and a line in ``_MODELS``."""

from __future__ import annotations

from torch import nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.allegro import ALLEGRO, OPENSORAPLAN_1_2
from rainfusion_trt.models.base import (
    AttentionLayout,
    GenerationDefaults,
    GraphInput,
    VideoModel,
    VideoSize,
)
from rainfusion_trt.models.cogvideox import COGVIDEOX_1_5_5B, COGVIDEOX_2B, COGVIDEOX_5B
from rainfusion_trt.models.hunyuanvideo import HUNYUANVIDEO
from rainfusion_trt.models.hunyuanvideo15 import HUNYUANVIDEO_1_5
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.models.wan import WAN_2_1_1_3B, WAN_2_1_14B, WAN_2_2_A14B, WAN_2_2_TI2V_5B

__all__ = [
    "AttentionLayout",
    "GenerationDefaults",
    "GraphInput",
    "VideoModel",
    "VideoSize",
    "component_names",
    "get_model",
    "model_names",
    "model_of",
]

_MODELS: tuple[VideoModel, ...] = (
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    COGVIDEOX_1_5_5B,
    HUNYUANVIDEO,
    HUNYUANVIDEO_1_5,
    OPENSORAPLAN_1_2,
    ALLEGRO,
    WAN_2_1_1_3B,
    WAN_2_1_14B,
    WAN_2_2_A14B,
    WAN_2_2_TI2V_5B,
)


def model_names() -> list[str]:
    """Registry names, without aliases."""
    return [model.name for model in _MODELS]


def component_names() -> tuple[str, ...]:
    """Names that transformers have in diffusers pipelines, the first one's first."""
    return tuple(dict.fromkeys(name for model in _MODELS for name in model.components))


def get_model(name: str) -> VideoModel:
    """The model of a registry name or alias (any case).

    Raises
    ------
    InvalidInputError
        No model has that name.
    """
    for model in _MODELS:
        if name.lower() in (model.name, *model.aliases):
            return model
    raise InvalidInputError(f"model {name!r} is unknown; known models: {', '.join(model_names())}")


def model_of(transformer: nn.Module, *, components: int = 1) -> VideoModel:
    """The model a diffusers transformer belongs to, by its class and configuration.

    Parameters
    ----------
    transformer
        Any of the model's transformers.
    components
        Number of transformers in its pipeline.

    Raises
    ------
    UnsupportedError
        No model of the registry describes it.
    """
    transformer = uncompiled(transformer)
    for model in _MODELS:
        if len(model.components) == components and model.matches(transformer):
            return model
    raise UnsupportedError(
        f"{type(transformer).__name__} with this configuration belongs to no known model "
        f"({', '.join(model_names())}); pass model= to say which one it works like"
    )
