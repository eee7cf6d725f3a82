"""A torch function mode that plans every call of the operator again, for whoever counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rainfusion_trt import classify_heads
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings


class WatchOperator(TorchFunctionMode):
    """Hands the plan of every call of the operator to a function."""

    def __init__(self, watch: Callable[[HeadPlan], None]) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.rainfusion.attention:
            q, k, _, grid, sparsity, kv_len, *flat = args
            settings = AttentionSettings.from_flat(*flat).attributes()
            self.watch(classify_heads(q, k, grid, sparsity=sparsity, kv_len=kv_len, **settings))
        return func(*args, **(kwargs or {}))
