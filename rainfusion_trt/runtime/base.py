"""What every way of running an exported transformer offers: `Backend`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rainfusion_trt.errors import InvalidInputError


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of a graph.

    Attributes
    ----------
    name : str
        Its name in the ONNX graph.
    dtype : torch.dtype
        The only dtype it takes.
    min_shape, max_shape : tuple of (int or None)
        Smallest and largest size per axis; None is no bound.
    """

    name: str
    dtype: torch.dtype
    min_shape: tuple[int | None, ...]
    max_shape: tuple[int | None, ...]

    def accepts(self, shape: tuple[int, ...]) -> bool:
        """Whether every axis of `shape` lies within the bounds."""
        if len(shape) != len(self.max_shape):
            return False
        bounds = zip(shape, self.min_shape, self.max_shape, strict=True)
        return all(
            (low or 0) <= size and (high is None or size <= high) for size, low, high in bounds
        )

    def __str__(self) -> str:
        axes = []
        for low, high in zip(self.min_shape, self.max_shape, strict=True):
            fixed = low == high and high is not None
            axes.append(str(high) if fixed else f"{low or 1}..{'any' if high is None else high}")
        return f"{str(self.dtype).removeprefix('torch.')} [{', '.join(axes)}]"


class Backend(ABC):
    """An exported transformer, loaded and ready to run.

    Attributes
    ----------
    name : str
        ``"tensorrt"``, ``"tensorrt_rtx"`` or ``"onnxruntime"``.
    device : torch.device
        Where every tensor of a feed has to be, and where outputs are.
    inputs, outputs : dict of str to TensorInfo
        In graph order.
    sparse : bool
        Whether the sparsity input has an effect; False where attention runs as the dense body.
    """

    name: str
    device: torch.device
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]
    sparse: bool = True

    @property
    def profiles(self) -> tuple[Mapping[str, TensorInfo], ...]:
        """`inputs` as they go together: by optimisation profiles, of which each serves a call."""
        return (self.inputs,)

    @abstractmethod
    def run(self, feed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run once on torch's current stream.

        Parameters
        ----------
        feed : mapping of str to Tensor
            Every input by name, contiguous, on `device`, of the dtype and shape of `inputs`.

        Returns
        -------
        dict of str to Tensor
            Every output by name. They may be overwritten by the next call.
        """

    @abstractmethod
    def describe(self) -> str:
        """One line for the log: runtime and version, device, file."""

    def close(self) -> None:  # noqa: B027  (nothing to free is a valid answer)
        """Free the memory it holds; it cannot run afterwards."""


def check_feed(backend: Backend, feed: Mapping[str, Tensor]) -> None:
    """Refuse a feed that does not fit, naming the tensor, what it is and what is wanted.

    Raises
    ------
    InvalidInputError
        A tensor is missing, unknown, on another device, not contiguous, or of a dtype or shape
        the graph does not take.
    """
    missing = [name for name in backend.inputs if name not in feed]
    unknown = [name for name in feed if name not in backend.inputs]
    if missing or unknown:
        raise InvalidInputError(
            f"{backend.name}: inputs are {', '.join(backend.inputs)}; "
            f"missing {', '.join(missing) or 'none'}, unknown {', '.join(unknown) or 'none'}"
        )
    for name, info in backend.inputs.items():
        tensor = feed[name]
        if tensor.device.type != backend.device.type:
            raise InvalidInputError(
                f"{backend.name}: input {name} is on {tensor.device}, the graph runs on "
                f"{backend.device}: move the diffusers pipeline there with pipe.to()"
            )
        if tensor.dtype != info.dtype or not info.accepts(tuple(tensor.shape)):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise InvalidInputError(
                f"{backend.name}: input {name} is {dtype} {list(tensor.shape)}, but this graph "
                f"takes {info}: use a size inside these bounds or export and build for this one"
            )
        if not tensor.is_contiguous():
            raise InvalidInputError(f"{backend.name}: input {name} is not contiguous")


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of an ONNX or NumPy type name such as ``"float16"`` or ``"tensor(float)"``.

    Raises
    ------
    InvalidInputError
        No such dtype.
    """
    plain = name.removeprefix("tensor(").removesuffix(")")
    plain = {"float": "float32", "double": "float64"}.get(plain, plain)
    dtype = getattr(torch, plain, None)
    if not isinstance(dtype, torch.dtype):
        raise InvalidInputError(f"dtype {name!r} is unknown to torch")
    return dtype
