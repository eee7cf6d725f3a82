"""What ``rainfusion-trt models`` says: the registry, with what follows from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rainfusion_trt.engine.recipe import load_recipe
from rainfusion_trt.engine.recipes import shipped_recipes
from rainfusion_trt.models import VideoSize, get_model, model_names
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.runtime.denoiser import complete_config
from rainfusion_trt.runtime.pipes import diffusers_classes, modes_of

# What ran at full width and standard size, with random weights; benchmarks/results has the files.
_ON_GPU = {
    "cogvideox-5b": "42 blocks, H100",
    "hunyuanvideo": "2 blocks, H100",
    "hunyuanvideo-1.5-i2v": "2 blocks, H100",
    "ltx-2": "2 blocks, H200",
    "opensoraplan-1.2": "complete, H100",
    "wan2.1-14b": "2 blocks, H100",
    "wan2.2-i2v-a14b": "2 blocks, H100",
}


@dataclass(frozen=True)
class ModelRow:
    """One model of the registry.

    Attributes
    ----------
    name, aliases
        In the registry.
    modes
        What a generation may start from: "text", "image", "video", "control_video".
    transformer, pipelines
        Class names in diffusers, the usual pipeline first.
    components
        The transformers of a pipeline.
    layers
        Self-attentions of each of them.
    head_size
        D; None where the configuration does not say it.
    text
        Place of the text in self-attention: "none", "first" or "last".
    size
        The usual clip, frames x height x width.
    video_tokens
        Tokens of that clip, without those of the text.
    recipe
        Name for ``build-engine --recipe``; None if the project ships none.
    recipe_sizes
        Clips that its engines are best at; none where the recipe gives shapes instead.
    on_gpu
        What ran in TensorRT on which GPU; None if nothing did. All else ran on the CPU, in tiny
        configurations: docs/models.md says what.
    steps, guidance_scale, fps
        Defaults.
    """

    name: str
    aliases: tuple[str, ...]
    modes: tuple[str, ...]
    transformer: str
    pipelines: tuple[str, ...]
    components: tuple[str, ...]
    layers: int
    head_size: int | None
    text: str
    size: str
    video_tokens: int
    recipe: str | None
    recipe_sizes: tuple[str, ...]
    on_gpu: str | None
    steps: int
    guidance_scale: float
    fps: int


def list_models() -> Iterator[ModelRow]:
    """Every model of the registry, in its order; imports diffusers."""
    for name in model_names():
        yield _row(get_model(name))


def _row(model: VideoModel) -> ModelRow:
    config = complete_config(model, model.config())
    defaults = model.defaults
    recipe = model.name if model.name in shipped_recipes() else None
    return ModelRow(
        name=model.name,
        aliases=model.aliases,
        modes=modes_of(model),
        transformer=model.transformer_class,
        pipelines=tuple(found.__name__ for found in diffusers_classes(model)),
        components=model.components,
        layers=model.attention_count(config),
        head_size=model.head_size(config),
        text=model.text,
        size=str(defaults.size),
        video_tokens=model.extents(config, defaults.size, 1)["video_tokens"],
        recipe=recipe,
        recipe_sizes=_sizes(recipe),
        on_gpu=_ON_GPU.get(model.name),
        steps=defaults.steps,
        guidance_scale=defaults.guidance_scale,
        fps=defaults.fps,
    )


def _sizes(recipe: str | None) -> tuple[str, ...]:
    if recipe is None:
        return ()
    clips = load_recipe(recipe).sizes.values()
    sizes = (str(VideoSize(c.frames.opt, c.height.opt, c.width.opt)) for c in clips)
    return tuple(dict.fromkeys(sizes))
