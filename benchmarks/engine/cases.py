"""A benchmark case: a model with seeded random weights, at one size, on one device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoModel, VideoSize, get_model
from rainfusion_trt.models.base import ConfigSize
from rainfusion_trt.operator.settings import AttentionSettings, Method, Precision

WEIGHTS_SEED, INPUTS_SEED = 0, 1


@dataclass(frozen=True)
class Case:
    """One network, clip size and precision.

    Attributes
    ----------
    model
        A model of the registry.
    size
        Clip of the example inputs, and of the graph unless it is `dynamic`.
    batch
        Batch of one call of the model's pipeline with guidance, unless a benchmark says otherwise.
    width
        "full" or "tiny" constructor arguments.
    layers
        Blocks (of each kind, where a model has two); None = all.
    device, dtype
        Place and type of the weights, which are drawn there and stay.
    dynamic
        Whether the graph takes other sizes too.
    method
        How attention chooses, in the engine and in the torch operator.
    precision
        Of attention in both.
    """

    model: VideoModel
    size: VideoSize
    batch: int
    width: ConfigSize = "full"
    layers: int | None = None
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    dynamic: bool = False
    method: Method = AttentionSettings.method
    precision: Precision = AttentionSettings.precision

    @classmethod
    def standard(
        cls,
        name: str,
        *,
        layers: int | None = None,
        size: VideoSize | None = None,
        tiny: bool = False,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        dynamic: bool = False,
        method: Method = AttentionSettings.method,
        precision: Precision = AttentionSettings.precision,
    ) -> Case:
        """A model of the registry at its standard setting (or its tiny one), guidance included."""
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidInputError(
                "torch sees no GPU: run this on one, or rehearse it on the CPU with --tiny"
            )
        model = get_model(name)
        return cls(
            model=model,
            size=size or (model.tiny_size if tiny else model.defaults.size),
            batch=2 if model.guidance_batch else 1,
            width="tiny" if tiny else "full",
            layers=layers,
            device=device,
            dtype=dtype,
            dynamic=dynamic,
            # Of clips as small as the tiny ones piecewise would have one window.
            method="rainfusion" if tiny else method,
            precision=precision,
        )

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.model.config(self.width, layers=self.layers)

    @property
    def blocks(self) -> int:
        """Self-attentions of a forward call, one a block."""
        return self.model.attention_count(self.config)

    def facts(self) -> dict[str, Any]:
        """Facts that every row of a result repeats."""
        facts = {
            "model": self.model.name,
            "layers": self.layers or self.config["num_layers"],
            "size": str(self.size),
            "batch": self.batch,
            "method": self.method,
        }
        if self.precision != AttentionSettings.precision:
            facts["precision"] = self.precision
        return facts

    def signature(self) -> dict[str, Any]:
        """Everything that an exported file of this case depends on."""
        return {
            **self.facts(),
            "width": self.width,
            "device": self.device,
            "dtype": str(self.dtype).removeprefix("torch."),
            "dynamic": self.dynamic,
            "seed": WEIGHTS_SEED,
        }

    def transformer(self) -> nn.Module:
        """The network, its weights drawn on the device they stay on."""
        return self.model.create(
            self.config, dtype=self.dtype, device=self.device, seed=WEIGHTS_SEED
        )

    def inputs(self, transformer: nn.Module) -> dict[str, Tensor]:
        return self.model.example_inputs(
            transformer, self.size, batch=self.batch, device=self.device, seed=INPUTS_SEED
        )

    def tokens(self, transformer: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[int, int]:
        """Tokens of the self-attention, and how many of them are no padding.

        Raises
        ------
        InvalidInputError
            The elements of the batch differ in that.
        """
        layout = self.model.layout(transformer, self.model.forward_kwargs(inputs))
        tokens = layout.grid.numel() + layout.text_tokens
        if layout.kv_len is None:
            return tokens, tokens
        lengths = set(layout.kv_len.tolist())
        if len(lengths) > 1:
            raise InvalidInputError(
                f"{self.model.name}: batch {self.batch} has {sorted(lengths)} valid tokens; "
                "benchmarks need one length, so use batch 1"
            )
        return tokens, lengths.pop()
