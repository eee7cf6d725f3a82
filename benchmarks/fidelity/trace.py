"""Torch function modes that watch or replace the self-attention of a transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.fidelity.choice import Rule
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator.geometry import Kind


class Trace:
    """Kind and density of every head of every attention, in the order of the calls."""

    def __init__(self) -> None:
        self._kinds: list[Tensor] = []
        self._densities: list[Tensor] = []

    def add(self, kind: Tensor, density: Tensor) -> None:
        """One call: [B, N] each; nothing waits for the device."""
        self._kinds.append(kind.to(torch.int8))
        self._densities.append(density.float())

    def kinds(self, steps: int) -> Tensor:
        """int8 [steps, layers, B, N] on the CPU."""
        return self._stack(self._kinds, steps)

    def densities(self, steps: int) -> Tensor:
        """float32 [steps, layers, B, N] on the CPU."""
        return self._stack(self._densities, steps)

    @staticmethod
    def _stack(calls: list[Tensor], steps: int) -> Tensor:
        return torch.stack(calls).cpu().unflatten(0, (steps, -1))


class _Attention(TorchFunctionMode):
    """Takes the calls of attention over all tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        q, k, v = args[:3]
        if q.shape[-2] != self.tokens or k.shape[-2] != self.tokens:
            return func(*args, **kwargs)
        options = {key: value for key, value in kwargs.items() if value}
        if len(args) > 3 or options:
            raise UnsupportedError(f"attention with {options or args[3:]}: the study knows none")
        return self.attend(q, k, v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class ReplaceAttention(_Attention):
    """A rule's attention instead of the dense one; dense while `dense` is set."""

    def __init__(self, tokens: int, rule: Rule, trace: Trace) -> None:
        super().__init__(tokens)
        self.rule = rule
        self.trace = trace
        self.dense = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.dense:
            ones = torch.ones(q.shape[:2], device=q.device)
            self.trace.add(ones * int(Kind.DENSE), ones)
            return F.scaled_dot_product_attention(q, k, v)
        choice, density = self.rule.choose(q, k, v)
        self.trace.add(choice.code, density)
        return choice.attend(q, k, v)


class CaptureAttention(_Attention):
    """Dense attention; hands q, k and v of every call on."""

    def __init__(self, tokens: int, receive: Callable[[Tensor, Tensor, Tensor], None]) -> None:
        super().__init__(tokens)
        self.receive = receive

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.receive(q, k, v)
        return F.scaled_dot_product_attention(q, k, v)
