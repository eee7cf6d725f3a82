"""Feed-forward networks in FP8, by torchao."""

from __future__ import annotations

import re

from torch import nn

from rainfusion_trt.errors import InvalidInputError

# Linear layers of feed-forward networks as diffusers names them. `proj_out` of HunyuanVideo's
# single blocks is attention's projection as well, and stays.
_FFN = re.compile(r"(^|\.)((ff|ffn|ff_context)\.|proj_mlp$)")


def ffn_layers(transformer: nn.Module) -> list[str]:
    """Names of the linear layers of the feed-forward networks of blocks.

    Raises
    ------
    InvalidInputError
        There is none.
    """
    names = [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, nn.Linear) and _FFN.search(name)
    ]
    if not names:
        raise InvalidInputError(
            f"{type(transformer).__name__} has no linear layer that is known as one of a "
            "feed-forward network"
        )
    return names


def quantise_ffns(transformer: nn.Module) -> list[str]:
    """Weights of `ffn_layers` as e4m3, a scale a row; activations as they come. Their names."""
    from torchao.quantization import (
        Float8DynamicActivationFloat8WeightConfig,
        PerRow,
        quantize_,
    )

    names = ffn_layers(transformer)
    chosen = frozenset(names)
    # torchao's settings of the compiler hold for all that is compiled afterwards, and search for
    # minutes: without them all forwards are compiled by the same ones.
    config = Float8DynamicActivationFloat8WeightConfig(
        granularity=PerRow(), set_inductor_config=False
    )
    quantize_(transformer, config, filter_fn=lambda _module, name: name in chosen)
    return names
