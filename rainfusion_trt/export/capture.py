"""Traces a module into an ExportedProgram whose attention is the RainFusion operator."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rainfusion_trt.errors import ExportError, RainFusionError, UnsupportedError
from rainfusion_trt.export.shared_ops import shared_attention
from rainfusion_trt.export.shared_tokens import shared_tokens
from rainfusion_trt.export.source import GraphSource, all_outputs
from rainfusion_trt.export.step_precision import attention_of_bits
from rainfusion_trt.graph_file import BITS_INPUT, PART_INPUT
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.routing import AttentionRoute
from rainfusion_trt.routing.lengths import advice, seen, shapes_of


class RoutedTransformer(nn.Module):
    """The module as the graph sees it: it takes tensors and the sparsity, and gives tensors."""

    def __init__(self, source: GraphSource, settings: AttentionSettings) -> None:
        super().__init__()
        self.transformer = source.module
        self._source = source
        self._settings = settings

    def forward(self, inputs: dict[str, Tensor], sparsity: Tensor) -> tuple[Tensor, ...]:
        call = self._source.arguments(inputs)
        layout = self._source.layout(call)
        shared: Any = nullcontext(call)
        options: dict[str, Any] = {"within": self._source.within}
        if self._source.cuts is not None:
            part = inputs[PART_INPUT]
            shared = shared_tokens(self._source.cuts, self.transformer, call, part, layout.grid)
            options |= {"video_tokens": part.shape[0], "attention": shared_attention}
        if BITS_INPUT in inputs:
            parallel = self._source.cuts is not None
            how = partial(attention_of_bits, bits=inputs[BITS_INPUT], parallel=parallel)
            options["attention"] = how
        with shared as call, AttentionRoute(layout, sparsity, self._settings, **options) as route:
            outputs = all_outputs(self._source.call(call))
        self._check(route)
        return outputs

    def _check(self, route: AttentionRoute) -> None:
        expected = self._source.attentions
        if route.count == expected or (expected is None and route.count > 0):
            return
        kind = type(self.transformer).__name__
        if expected is None:
            shapes = shapes_of(self._source.inputs)
            raise ExportError(
                f"no attention of {kind} has the {route.tokens} tokens of grid and text; "
                f"{advice(self.transformer, route.others, shapes)}"
            )
        raise ExportError(
            f"{route.count} attentions of {kind} reached F.scaled_dot_product_attention with the "
            f"{route.tokens} tokens of the video, {self._source.name} has {expected}; "
            f"{seen(route.others)}; use the native attention backend and no fused processors"
        )


def capture(source: GraphSource, sparsity: Tensor, settings: AttentionSettings) -> ExportedProgram:
    """Trace the module into a functional graph.

    Raises
    ------
    ExportError
        torch.export cannot trace it, or some of its attention bypasses the operator.
    UnsupportedError
        The module asks attention for its log-sum-exp.
    """
    inputs = source.inputs
    shapes = {
        "inputs": {name: dict.fromkeys(source.axes.get(name, ()), Dim.DYNAMIC) for name in inputs},
        "sparsity": None,
    }
    module = RoutedTransformer(source, settings)
    try:
        with torch.no_grad():
            program = torch.export.export(
                module, (dict(inputs), sparsity), dynamic_shapes=shapes, strict=False
            )
            program = program.run_decompositions({})
    except RainFusionError:
        raise
    except (torch._dynamo.exc.UserError, RuntimeError) as error:
        raise ExportError(f"torch.export could not trace {source.name}: {error}") from error
    _refuse_lse(program, source.name)
    return program


def _refuse_lse(program: ExportedProgram, name: str) -> None:
    """Refuse a log-sum-exp, which the ONNX operator, with its one output, would lose."""
    operator = torch.ops.rainfusion.attention_lse.default
    graphs = [m for m in program.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    if any(node.target is operator for graph in graphs for node in graph.graph.nodes):
        raise UnsupportedError(
            f"{name} calls rainfusion_attention with return_lse=True, and the ONNX operator "
            "RainFusionAttention has no log-sum-exp output: export it without return_lse, or run "
            "this module in PyTorch"
        )


def attention_count(program: ExportedProgram) -> int:
    """Count the operator's calls in a captured program."""
    operators = (
        torch.ops.rainfusion.attention.default,
        torch.ops.rainfusion.shared_attention.default,
        torch.ops.rainfusion.attention_of_bits.default,
    )
    return sum(node.target in operators for node in program.graph.nodes)
