"""What the project must know about one video diffusion transformer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError

from .weights import random_transformer

TextPlace = Literal["none", "first", "last"]
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
    configs: Mapping[ConfigSize, Mapping[str, Any]]  # constructor arguments of the transformer
    defaults: GenerationDefaults
    guidance_batch: bool = True  # classifier-free guidance as batch 2 (else as two calls)
    tiny_size: VideoSize = VideoSize(9, 64, 96)  # clip of the tiny configuration

    def matches(self, transformer: nn.Module) -> bool:
        """Whether a transformer is of this model."""
        return type(transformer).__name__ == self.transformer_class

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

    @abstractmethod
    def load(self, checkpoint: str, *, dtype: torch.dtype) -> nn.Module:
        """The transformer of a diffusers checkpoint (a directory or a hub id)."""

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

    # -- attention ------------------------------------------------------------------------------

    @abstractmethod
    def layout(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> AttentionLayout:
        """Token grid, text place and valid length of a forward call."""

    @abstractmethod
    def attention_count(self, config: Mapping[str, Any]) -> int:
        """Number of self-attentions that the operator replaces."""
