"""What every transformer must show under `enable`: parity at 0, sparsity in the video alone."""

from __future__ import annotations

from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.overrides import TorchFunctionMode

import rainfusion_trt
from rainfusion_trt.models import VideoModel, VideoSize

# Two float32 softmaxes that sum the same keys in another order, through two blocks: a few hundred
# roundings of 6e-8. A wrong mask, grid or order is off by more than 1e-2.
TOLERANCE = 1e-5


@torch.no_grad()
def outputs(transformer: nn.Module, call: dict[str, Any]) -> list[Tensor]:
    """All outputs of a forward."""
    output = transformer(**call, return_dict=False)
    return [output] if isinstance(output, Tensor) else list(output)


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference over the largest value, of the worst output."""
    assert [x.shape for x in actual] == [x.shape for x in expected]
    pairs = zip(actual, expected, strict=True)
    return max(float((a - e).abs().max() / e.abs().max()) for a, e in pairs)


class CountedAttention(TorchFunctionMode):
    """Counts the calls of PyTorch's attention."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func is F.scaled_dot_product_attention
        return func(*args, **(kwargs or {}))


def check_parity(
    model: VideoModel,
    transformer: nn.Module,
    call: dict[str, Any],
    names: tuple[str, ...],
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """At sparsity 0 as without, at 0.5 sparse in these attentions and nowhere else."""
    with CountedAttention() as plain:
        dense = outputs(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=model, method="rainfusion")
    try:
        assert relative_error(outputs(transformer, call), dense) < tolerance
        assert routing.report() == (names, (), ())
        routing.sparsity = 0.5
        with CountedAttention() as rest:
            sparse = outputs(transformer, call)
        assert routing.report() == (names, (), ())
        # The others are PyTorch's as before: cross-attention and refiners of the text.
        assert rest.calls == plain.calls - len(names)
        assert all(torch.isfinite(x).all() for x in sparse)
        assert relative_error(sparse[:1], dense[:1]) > 1e-3
    finally:
        rainfusion_trt.disable(transformer)
    assert all(map(torch.equal, outputs(transformer, call), dense))


def check_full_graph(model: VideoModel, transformer: nn.Module, call: dict[str, Any]) -> None:
    """The enabled transformer is a full graph of torch.compile, the same for every sparsity."""
    torch._dynamo.reset()
    counters.clear()
    routing = rainfusion_trt.enable(transformer, sparsity=0.6, model=model, method="rainfusion")
    try:
        sparse = outputs(transformer, call)
        compiled = torch.compile(transformer, backend="eager", fullgraph=True)
        assert relative_error(outputs(compiled, call), sparse) < TOLERANCE
        graphs = counters["stats"]["unique_graphs"]
        routing.sparsity = 0.0
        outputs(compiled, call)
        assert counters["stats"]["unique_graphs"] == graphs > 0 and not counters["graph_break"]
        assert routing.routed == model.attention_count(transformer.config)
    finally:
        rainfusion_trt.disable(transformer)
        torch._dynamo.reset()


def sizes_of(model: VideoModel) -> tuple[tuple[VideoSize, int], ...]:
    """Clips with enough blocks for sparsity to show, none square in all, and their batch."""
    unit = model.vae_pixels * model.patch_pixels
    frames = model.vae_frames * 6 + 1
    return (VideoSize(frames, 8 * unit, 8 * unit), 1), (VideoSize(frames, 6 * unit, 10 * unit), 2)
