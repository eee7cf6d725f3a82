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
from rainfusion_trt.models.cogvideox import (
    COGVIDEOX_1_5_5B,
    COGVIDEOX_1_5_5B_I2V,
    COGVIDEOX_2B,
    COGVIDEOX_5B,
    COGVIDEOX_5B_I2V,
    COGVIDEOX_FUN_5B_CONTROL,
)
from rainfusion_trt.models.cosmos import COSMOS_PREDICT_2_5_2B, COSMOS_PREDICT_2_5_14B
from rainfusion_trt.models.hunyuanvideo import (
    HUNYUANVIDEO,
    HUNYUANVIDEO_I2V,
    HUNYUANVIDEO_I2V_33CH,
)
from rainfusion_trt.models.hunyuanvideo15 import (
    HUNYUANVIDEO_1_5,
    HUNYUANVIDEO_1_5_I2V,
    HUNYUANVIDEO_1_5_I2V_STEP_DISTILLED,
)
from rainfusion_trt.models.kandinsky import KANDINSKY_5_LITE, KANDINSKY_5_PRO
from rainfusion_trt.models.ltx import LTX_VIDEO_2B, LTX_VIDEO_13B
from rainfusion_trt.models.ltx2 import LTX_2, LTX_2_3
from rainfusion_trt.models.minimax import MINIMAX_H3
from rainfusion_trt.models.skyreels import (
    SKYREELS_V2_14B,
    SKYREELS_V2_DF_1_3B,
    SKYREELS_V2_DF_14B,
    SKYREELS_V2_I2V_14B,
)
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.models.wan import (
    WAN_2_1_1_3B,
    WAN_2_1_14B,
    WAN_2_1_FLF2V_14B,
    WAN_2_1_I2V_14B,
    WAN_2_2_A14B,
    WAN_2_2_I2V_A14B,
    WAN_2_2_TI2V_5B,
)
from rainfusion_trt.models.wan_animate import WAN_2_2_ANIMATE_14B
from rainfusion_trt.models.wan_vace import WAN_2_1_VACE_1_3B, WAN_2_1_VACE_14B

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
    COGVIDEOX_5B_I2V,
    COGVIDEOX_1_5_5B_I2V,
    COGVIDEOX_FUN_5B_CONTROL,
    HUNYUANVIDEO,
    HUNYUANVIDEO_I2V,
    HUNYUANVIDEO_I2V_33CH,
    HUNYUANVIDEO_1_5,
    HUNYUANVIDEO_1_5_I2V,
    HUNYUANVIDEO_1_5_I2V_STEP_DISTILLED,
    LTX_VIDEO_2B,
    LTX_VIDEO_13B,
    LTX_2,
    LTX_2_3,
    OPENSORAPLAN_1_2,
    ALLEGRO,
    WAN_2_1_1_3B,
    WAN_2_1_14B,
    WAN_2_1_I2V_14B,
    WAN_2_1_FLF2V_14B,
    WAN_2_1_VACE_1_3B,
    WAN_2_1_VACE_14B,
    WAN_2_2_A14B,
    WAN_2_2_I2V_A14B,
    WAN_2_2_TI2V_5B,
    WAN_2_2_ANIMATE_14B,
    SKYREELS_V2_14B,
    SKYREELS_V2_I2V_14B,
    SKYREELS_V2_DF_14B,
    SKYREELS_V2_DF_1_3B,
    COSMOS_PREDICT_2_5_2B,
    COSMOS_PREDICT_2_5_14B,
    KANDINSKY_5_LITE,
    KANDINSKY_5_PRO,
    MINIMAX_H3,
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
        if str(name).lower() in (model.name, *model.aliases):
            return model
    raise InvalidInputError(f"model {name!r} is unknown; known models: {', '.join(model_names())}")


def model_of(transformer: nn.Module, *, components: int = 1) -> VideoModel:
    """The model a diffusers transformer belongs to, by its class and configuration.

    Parameters
    ----------
    transformer
        Any of the model's transformers.
    components
        Number of transformers in its pipeline. A single one may also be one of several, where no
        model has it alone.

    Raises
    ------
    UnsupportedError
        No model of the registry describes it.
    """
    transformer = uncompiled(transformer)
    matching = [model for model in _MODELS if model.matches(transformer)]
    alike = [model for model in matching if len(model.components) == components]
    if alike or (matching and components == 1):
        return (alike or matching)[0]
    raise UnsupportedError(
        f"{type(transformer).__name__} with this configuration belongs to no known model "
        f"({', '.join(model_names())}); pass model= to say which one it works like"
    )
