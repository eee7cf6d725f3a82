"""From a transformer to an ExportedProgram whose attention is the RainFusion operator."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rainfusion_trt import ops  # noqa: F401  (registers torch.ops.rainfusion)
from rainfusion_trt.errors import ExportError, RainFusionError
from rainfusion_trt.models import VideoModel
from rainfusion_trt.routing import AttentionRoute, RainFusionSettings


class RoutedTransformer(nn.Module):
    """The transformer as the graph sees it: tensors in, one tensor out, sparsity an input."""

    def __init__(
        self, model: VideoModel, transformer: nn.Module, settings: RainFusionSettings
    ) -> None:
        super().__init__()
        self.transformer = transformer
        self._model = model
        self._settings = settings

    def forward(self, inputs: dict[str, Tensor], sparsity: Tensor) -> Tensor:
        call = self._model.forward_kwargs(inputs)
        layout = self._model.layout(self.transformer, call)
        expected = self._model.attention_count(self.transformer.config)
        with AttentionRoute(layout, sparsity, self._settings) as route:
            output = self._model.call(self.transformer, call)
        if route.count != expected:
            raise ExportError(
                f"{route.count} attentions of {type(self.transformer).__name__} reached "
                f"F.scaled_dot_product_attention with the tokens of the video, {self._model.name} "
                f"has {expected}; use the native attention backend and no fused processors"
            )
        return output


def capture(
    model: VideoModel,
    transformer: nn.Module,
    inputs: Mapping[str, Tensor],
    sparsity: Tensor,
    settings: RainFusionSettings,
    *,
    dynamic: bool,
) -> ExportedProgram:
    """Trace the transformer; functional, not yet decomposed.

    Raises
    ------
    ExportError
        torch.export could not trace it, or attention went past the operator.
    """
    axes = model.dynamic_axes() if dynamic else {}
    shapes = {
        "inputs": {name: dict.fromkeys(axes.get(name, ()), Dim.DYNAMIC) for name in inputs},
        "sparsity": None,
    }
    module = RoutedTransformer(model, transformer, settings)
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (dict(inputs), sparsity), dynamic_shapes=shapes, strict=False
            )
            return program.run_decompositions({})
    except RainFusionError:
        raise
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        raise ExportError(f"torch.export could not trace {model.name}: {error}") from error
