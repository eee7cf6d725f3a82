"""What the project must know about one video diffusion transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.weights import load_transformer, random_transformer
from rainfusion_trt.operator.settings import TextPlace

ConfigSize = Literal["full", "tiny"]


@dataclass(frozen=True)
class VideoSize:
    """A clip as users name it: pixel frames and pixel height and width."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class AttentionLayout:
    """How one forward call's self-attention maps to the operator.

    Attributes
    ----------
    grid
        Any tensor of shape [T, H, W], the token grid after patching; only its shape is read.
    text
        Where the text tokens stand in the attention sequence.
    kv_len
        int32 [B], valid tokens per batch element, or None when every token is valid. It stands for
        the attention mask of the call, which the operator does not get.
    text_tokens
        L, so that attention over T*H*W + L tokens is the operator's and other attention is not.
    """

    grid: Tensor
    text: TextPlace
    kv_len: Tensor | None = None
    text_tokens: int = 0


@dataclass(frozen=True)
class GenerationDefaults:
    """What the model's diffusers pipeline uses when the user says nothing."""

    size: VideoSize
    steps: int
    guidance_scale: float
    dtype: torch.dtype
    fps: int


class VideoModel(ABC):
    """One model family member: one subclass instance per registry name.

    The exporter asks for a transformer, example inputs and dynamic axes; `enable` asks for the
    attention layout of a call; `Pipeline` turns the diffusers pipeline's call of the transformer
    into the graph's inputs. Nothing else in the project knows a model by name.
    """

    name: ClassVar[str] | str
    aliases: tuple[str, ...] = ()
    text: TextPlace
    transformer_class: str  # class names in diffusers, imported on use
    pipeline_class: str
    components: tuple[str, ...] = ("transformer",)  # of the pipeline; several take turns
    configs: Mapping[ConfigSize, Mapping[str, Any]]  # constructor arguments of the transformer
    defaults: GenerationDefaults
    guidance_batch: bool = True  # classifier-free guidance as batch 2 (else as two calls)
    tiny_size: VideoSize = VideoSize(9, 64, 96)  # clip of the tiny configuration
    vae_frames: int = 4  # pixel frames a latent frame, after the first
    vae_pixels: int = 8  # pixels a latent row or column
    patch_frames: int = 1  # latent frames a token
    patch_pixels: int = 2  # latent rows or columns a token
    distinctive: tuple[str, ...]  # settings that tell the model from others of its class
    remedy: str = "choose the model it belongs to"  # for a checkpoint of another model

    def matches(self, transformer: nn.Module) -> bool:
        """Whether a transformer is of this model."""
        of_class = type(transformer).__name__ == self.transformer_class
        return of_class and self._has_config(transformer.config)

    @abstractmethod
    def _has_config(self, config: Mapping[str, Any]) -> bool:
        """Whether a configuration of the model's class is of this model."""

    # -- building the transformer ---------------------------------------------------------------

    def diffusers_class(self) -> type[nn.Module]:
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

    def create(
        self,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> nn.Module:
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

    def load(
        self, checkpoint: str, *, dtype: torch.dtype, component: str = "transformer"
    ) -> nn.Module:
        """One transformer of a diffusers checkpoint (a directory or a hub id).

        Raises
        ------
        InvalidInputError
            Nothing usable is there.
        UnsupportedError
            It is of another model.
        """
        transformer = load_transformer(
            self.diffusers_class(), checkpoint, dtype=dtype, component=component
        )
        if not self.matches(transformer):
            raise UnsupportedError(
                f"checkpoint {checkpoint!r} is not {self.name}: its transformer has "
                f"{self._described(transformer.config)}; {self.remedy}"
            )
        return transformer

    def _described(self, config: Mapping[str, Any]) -> str:
        return ", ".join(f"{key}={config[key]}" for key in self.distinctive)

    # -- the graph ------------------------------------------------------------------------------

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:  # noqa: B027
        """Bake into the transformer what depends on the clip's size; called before an export.

        It computes the same afterwards, for this and for other sizes.
        """

    @abstractmethod
    def example_inputs(
        self,
        transformer: nn.Module,
        size: VideoSize,
        *,
        batch: int,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Seeded random graph inputs by name, in graph order, without `sparsity`."""

    def _latent_size(self, size: VideoSize) -> tuple[int, int, int]:
        """Latent frames (in whole tokens, as the pipeline pads them), rows and columns of a clip.

        Raises
        ------
        InvalidInputError
            The model makes no clip of that size.
        """
        frames = self._latent_frames(size.frames)
        unit = self.vae_pixels * self.patch_pixels
        for name in ("height", "width"):
            pixels = getattr(size, name)
            if pixels < unit or pixels % unit:
                raise self._bad_size(name, pixels, f"a multiple of {unit}")
        return frames, size.height // self.vae_pixels, size.width // self.vae_pixels

    def _latent_frames(self, frames: int) -> int:
        if frames < 1 or (frames - 1) % self.vae_frames:
            raise self._bad_size("frames", frames, f"{self.vae_frames}k + 1")
        latent_frames = (frames - 1) // self.vae_frames + 1
        return latent_frames + -latent_frames % self.patch_frames

    def _bad_size(self, name: str, value: int, expected: str) -> InvalidInputError:
        usual = getattr(self.defaults.size, name)
        return InvalidInputError(
            f"{name}={value} must be {expected} for {self.name}, such as {usual}"
        )

    @abstractmethod
    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Axes that may vary, as {input: {axis: name}}; empty if a graph serves one size only."""

    @abstractmethod
    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Graph inputs -> keyword arguments of the transformer's forward."""

    @abstractmethod
    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Keyword arguments of the transformer's forward -> graph inputs (the inverse)."""

    def call(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """One forward as it is traced: the transformer's own, unless no graph can hold that."""
        return transformer(**forward_kwargs, return_dict=False)[0]

    def _refuse(
        self, forward_kwargs: Mapping[str, Any], *names: str, remedy: str = "leave it out"
    ) -> None:
        """Fail on arguments that the graph has no input for."""
        for name in names:
            value = forward_kwargs.get(name)
            if value is not None and not (isinstance(value, Mapping) and not value):
                raise UnsupportedError(
                    f"{self.name}: the exported graph has no input for {name}; {remedy}"
                )

    # -- attention ------------------------------------------------------------------------------

    @abstractmethod
    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """Token grid, text place and valid length of a forward call."""

    def _grid(self, latents: Tensor) -> Tensor:
        """Latents [T, H, W] -> a view of the shape of the token grid."""
        return latents[:: self.patch_frames, :: self.patch_pixels, :: self.patch_pixels]

    def _video_only(self, grid: Tensor, text_tokens: int) -> AttentionLayout:
        """Layout of a model whose text comes in by cross-attention, told apart by its length."""
        if grid.numel() == text_tokens:
            raise UnsupportedError(
                f"{self.name}: a clip of {text_tokens} tokens is as long as the text, so that "
                "self-attention and cross-attention look alike; choose another size"
            )
        return AttentionLayout(grid=grid, text="none")

    def attention_count(self, config: Mapping[str, Any]) -> int:
        """Number of self-attentions that the operator replaces."""
        return config["num_layers"]
