"""The description of one video diffusion transformer: all that the project knows about it."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.clip import GenerationDefaults, VideoSize
from rainfusion_trt.models.graph import ModelGraph
from rainfusion_trt.models.inputs import GraphInput
from rainfusion_trt.models.layout import AttentionLayout
from rainfusion_trt.models.noise_expert import check_expert
from rainfusion_trt.models.single_file import is_authors_folder, load_single_file
from rainfusion_trt.models.transformer import Transformer, as_transformer
from rainfusion_trt.models.weights import load_transformer, random_transformer
from rainfusion_trt.operator.settings import TextPlace

__all__ = [
    "AttentionLayout",
    "ConfigSize",
    "GenerationDefaults",
    "GraphInput",
    "VideoModel",
    "VideoSize",
]

ConfigSize = Literal["full", "tiny"]

# Where diffusers' video transformers have their self-attention.
_SELF_ATTENTION = re.compile(
    r"(^|\.)((single_)?transformer_|vace_)?blocks\.\d+\.(_orig_mod\.)?attn1?$"
)


def is_self_attention(name: str, module: nn.Module) -> bool:
    """Whether a module is a self-attention of a block, as diffusers' video transformers have it."""
    is_attention = hasattr(module, "processor") and hasattr(module, "set_processor")
    cross = getattr(module, "is_cross_attention", False)
    return is_attention and not cross and _SELF_ATTENTION.search(name) is not None


class VideoModel(ModelGraph, ABC):
    """One model family member: one subclass instance per registry name.

    The exporter, the engine builder, `enable` and `Pipeline` ask it; nothing else in the project
    knows a model by name. What its graph takes is said in :class:`ModelGraph`.

    Attributes
    ----------
    aliases : tuple of str
        More names in the registry.
    text : {"none", "first", "last"}
        Place of the text tokens in self-attention.
    transformer_class : str
        Class name in diffusers, imported on use.
    components : tuple of str
        The transformers of the pipeline, by their attribute there, in the order of `Pipeline`'s
        ``engine`` and ``engine_2``. Several take turns within a generation. This is the one place
        that says which a pipeline has; :func:`rainfusion_trt.models.component_names` knows them
        all.
    configs : mapping
        Constructor arguments of the transformer, "full" and "tiny"; both have every key that the
        axes of `inputs` name.
    guidance_batch : bool
        Classifier-free guidance is a batch of 2 (else two calls).
    timesteps_are_sigmas : bool
        Whether the transformer is called with noise levels from 0 to 1 in the place of the
        scheduler's timesteps.
    tiny_size : VideoSize
        Clip of the tiny configuration.
    distinctive : tuple of str
        Settings that tell the model from others of its class.
    unseen : str
        Settings that the shapes of weights do not show, so that a single file needs its
        config.json; "" where `configs` has them.
    remedy : str
        Advice about a checkpoint of another model, for the error message.
    """

    aliases: tuple[str, ...] = ()
    text: TextPlace
    transformer_class: str
    components: tuple[str, ...] = ("transformer",)
    configs: Mapping[ConfigSize, Mapping[str, Any]]
    guidance_batch: bool = True
    timesteps_are_sigmas: bool = False
    tiny_size: VideoSize = VideoSize(9, 64, 96)
    distinctive: tuple[str, ...]
    unseen: str = ""
    remedy: str = "choose the model it belongs to"

    def matches(self, transformer: nn.Module) -> bool:
        """Whether a transformer is of this model."""
        of_class = type(transformer).__name__ == self.transformer_class
        return of_class and self._has_config(as_transformer(transformer).config)

    @abstractmethod
    def _has_config(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration of the model's class is of this model."""

    # -- building the transformer ---------------------------------------------------------------

    def diffusers_class(self) -> type[Transformer]:
        """The transformer's class."""
        import diffusers

        return getattr(diffusers, self.transformer_class)

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Constructor arguments of the transformer; `layers` reduces the depth."""
        config = dict(self.configs[size])
        if layers is not None:
            if not 1 <= layers <= config["num_layers"]:
                raise InvalidInputError(
                    f"layers={layers} must be between 1 and {config['num_layers']}, the depth of "
                    f"{self.name} ({size})"
                )
            config["num_layers"] = layers
        return config

    @typed
    def create(
        self,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> Transformer:
        """A transformer with seeded random weights whose outputs stay near unit scale."""
        kind = self.diffusers_class()
        return random_transformer(kind, config, dtype=dtype, device=device, seed=seed)

    def component(self, name: str | None) -> str:
        """Which of the pipeline's transformers is meant; None where there is only one.

        Raises
        ------
        InvalidInputError
            There is no such transformer, or several and none was named.
        """
        if name is None and len(self.components) == 1:
            return self.components[0]
        if name not in self.components:
            raise InvalidInputError(
                f"component {name!r}: the transformers of {self.name} are "
                f"{' and '.join(self.components)}, say which one (--component)"
            )
        return name

    @typed
    def load(
        self, checkpoint: str | Path, *, dtype: torch.dtype, component: str = "transformer"
    ) -> Transformer:
        """One transformer of a diffusers checkpoint (a directory or a hub id), or of one file.

        A file is ``.safetensors`` or ``.gguf``, by the names of diffusers or of the authors.

        Raises
        ------
        InvalidInputError
            Nothing usable is there.
        UnsupportedError
            It is of another model.
        """
        cls, path = self.diffusers_class(), Path(checkpoint)
        if path.is_file() or is_authors_folder(path, cls.__name__):
            check_expert(path, self.components, component)
            transformer = load_single_file(
                cls,
                path,
                model=self.name,
                config=self.config("full"),
                unseen=self.unseen,
                dtype=dtype,
            )
        else:
            transformer = load_transformer(cls, str(checkpoint), dtype=dtype, component=component)
        if not self.matches(transformer):
            raise UnsupportedError(
                f"checkpoint {str(checkpoint)!r} is not {self.name}: its transformer has "
                f"{self._described(transformer.config)}; {self.remedy}"
            )
        return transformer

    def _described(self, config: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={config[key]}" for key in self.distinctive)

    # -- attention ------------------------------------------------------------------------------

    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """Token grid, text place and valid length of a forward call."""
        grid = self._grid(transformer, forward_kwargs)
        if self.text == "none":
            return AttentionLayout(grid=grid, text="none")
        text_tokens = forward_kwargs["encoder_hidden_states"].shape[-2]
        return AttentionLayout(grid=grid, text=self.text, text_tokens=text_tokens)

    def check_lengths(self, layout: AttentionLayout, forward_kwargs: Mapping[str, Any]) -> None:
        """Refuse a call whose self-attention cannot be told from others by its tokens alone.

        Where no module of `is_self_attention` tells it.

        Raises
        ------
        UnsupportedError
            Attention to the text has the same lengths.
        """
        text = forward_kwargs.get("encoder_hidden_states")
        if layout.text != "none" or not isinstance(text, Tensor):
            return
        if layout.grid.numel() == text.shape[-2]:
            raise UnsupportedError(
                f"{self.name}: a clip of {text.shape[-2]} tokens is as long as the text, so that "
                "self-attention and cross-attention look alike; choose another size"
            )

    def grid_shape(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> tuple[int, int, int]:
        """T, H and W of the token grid in a call of the transformer, as `layout` has it."""
        frames, height, width = self.layout(transformer, forward_kwargs).grid.shape
        return frames, height, width

    def is_self_attention(self, name: str, module: nn.Module) -> bool:
        """Whether a module, by its name in the transformer, is one that the operator replaces.

        Text refiners have self-attention too, over the text, and do not lie in these blocks.
        """
        return is_self_attention(name, module)

    def _grid(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """A view of the latents of the shape of the token grid."""
        axes = ("frames", "height", "width")
        steps = dict(zip(axes, self._patch(transformer), strict=True))
        latents = next(given for given in self.inputs if steps.keys() <= set(given.axes))
        first = tuple(slice(None) if axis in steps else 0 for axis in latents.axes)
        patch = tuple(slice(None, None, steps[axis]) for axis in latents.axes if axis in steps)
        value = forward_kwargs[latents.name]
        if value.dim() != len(first):
            raise UnsupportedError(
                f"{self.name}: {latents.name} has shape {tuple(value.shape)}, and that model's is "
                f"[{', '.join(map(str, latents.axes))}]; choose model= by how the transformer "
                "takes its latents"
            )
        return value[first][patch]

    def _patch(self, transformer: nn.Module) -> tuple[int, int, int]:
        """Latent frames, rows and columns a token: the transformer's, else the model's."""
        config = getattr(transformer, "config", None)
        if config is None or config.get("patch_size") is None:
            return self.patch_frames, self.patch_pixels, self.patch_pixels
        size = config["patch_size"]
        if isinstance(size, int):
            return config.get("patch_size_t") or 1, size, size
        frames, height, width = size
        return frames, height, width

    def head_size(self, config: Mapping[str, Any]) -> int | None:
        """D of self-attention; None where the transformer's configuration does not say."""
        return config.get("attention_head_dim")

    def attention_count(self, config: Mapping[str, Any]) -> int:
        """Number of self-attentions that the operator replaces."""
        return config["num_layers"]
