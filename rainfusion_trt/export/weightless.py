"""Full-size graphs without weights, for a look at their structure on a small machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from rainfusion_trt.argument_types import typed
from rainfusion_trt.export.writer import initial_values
from rainfusion_trt.models import VideoModel

CONSTANT_BYTES = 1 << 20  # constants of up to this size stay in the file


@typed
def fake_transformer(
    model: VideoModel, config: Mapping[str, Any], *, dtype: torch.dtype
) -> nn.Module:
    """Make a transformer of any size whose parameters take no memory."""
    with FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True):
        return model.create(config, dtype=dtype)


def is_fake(transformer: nn.Module) -> bool:
    """Whether its parameters have no values."""
    return isinstance(next(transformer.parameters()), FakeTensor)


def leave_out_weights(model: ir.Model, location: str) -> None:
    """Point every parameter and table to its place in `location`, which is not written."""
    offset = 0
    for name, tensor in initial_values(model).items():
        if not isinstance(tensor.raw, FakeTensor) and tensor.nbytes <= CONSTANT_BYTES:
            continue
        shape = ir.Shape(tensor.shape.numpy())
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            location, offset, tensor.nbytes, tensor.dtype, shape=shape, name=name
        )
        offset += tensor.nbytes
