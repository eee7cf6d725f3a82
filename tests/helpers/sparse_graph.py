"""An exported graph with its attention sparse on the CPU: onnx's evaluator and our reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from rainfusion_trt.graph_file import DOMAIN, PLUGIN_ATTRIBUTES
from rainfusion_trt.operator.ops import rainfusion_attention


class RainFusionAttention(OpRun):
    """The operator by its attributes, in the place of the graph's dense body."""

    op_domain = DOMAIN

    def _run(
        self, query: Any, key: Any, value: Any, grid: Any, sparsity: Any, **attributes: Any
    ) -> tuple[Any]:
        settings = {k: v for k, v in attributes.items() if k not in PLUGIN_ATTRIBUTES}
        q, k, v = (torch.from_numpy(x.copy()) for x in (query, key, value))
        sparse = rainfusion_attention(
            q, k, v, grid.shape, sparsity=torch.from_numpy(sparsity), **settings
        )
        return (sparse.numpy(),)


def run_sparse(path: Path, inputs: Mapping[str, Tensor], sparsity: float) -> list[Tensor]:
    """The outputs of a float32 graph whose attention has no `kv_len`."""
    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=[RainFusionAttention])
    feed = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    given = torch.tensor([sparsity]).numpy()
    return [torch.from_numpy(x) for x in evaluator.run(None, {**feed, "sparsity": given})]
