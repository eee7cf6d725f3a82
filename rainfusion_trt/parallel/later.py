"""``Later``: a tensor whose values are computed when somebody reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


class Later(Tensor):
    """Stands for a tensor that comes later; to keep it or ask for its shape reads nothing.

    Every operation on it works on the values and returns plain tensors.

    Parameters
    ----------
    shape, dtype, device
        Of the tensor.
    settle
        Called by the first operation that comes before :meth:`give`; returns the values.
    """

    mine: Tensor  # in the process that has computed it
    _settle: Callable[[], Tensor]
    _value: Tensor | None

    @staticmethod
    def __new__(
        cls: type[Later],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        settle: Callable[[], Tensor],
    ) -> Later:
        later = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        later._settle = settle
        later._value = None
        return later

    def give(self, value: Tensor) -> None:
        """Set the values."""
        self._value = value

    def read(self) -> Tensor:
        """The values as a plain tensor."""
        if self._value is None:
            self._value = self._settle()
        return self._value

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # reads nothing
        return f"Later({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(Later, Later.read, (args, kwargs or {}))
        return func(*args, **kwargs)
