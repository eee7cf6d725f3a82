"""Errors on q, k and v of a model's layers: ours in 16 and 8 bits, and the peers'.

The file is safetensors with `LAYER.q`, `LAYER.k` and `LAYER.v` of every layer, [B, N, S, D], and in
its metadata `grid` ("T,H,W") and `text` ("none", "first" or "last"). `save` writes one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.attention.accuracy import head_errors
from benchmarks.attention.peers.rivals import Peer
from rainfusion_trt import rainfusion_attention
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import PRECISIONS, TEXT_PLACES

METHOD = "piecewise"
_NAMES = ("q", "k", "v")
Row = dict[str, Any]
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def save(
    path: Path,
    layers: Mapping[str, tuple[Tensor, Tensor, Tensor]],
    grid: Sequence[int],
    text: str = "none",
) -> None:
    """Write q, k and v [B, N, S, D] of layers, by their names."""
    tensors = {
        f"{layer}.{name}": x.detach().cpu().contiguous()
        for layer, given in layers.items()
        for name, x in zip(_NAMES, given, strict=True)
    }
    save_file(tensors, path, {"grid": ",".join(map(str, grid)), "text": text})


class Captured:
    """A file of layers.

    Raises
    ------
    InvalidInputError
        It is not as `save` writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                names = list(file.keys())
                self._shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
                metadata = file.metadata() or {}
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"--tensors {path} cannot be read: {error}") from error
        self.layers = list(dict.fromkeys(name.rpartition(".")[0] for name in self._shapes))
        self.text = metadata.get("text", "none")
        try:
            self.grid = tuple(int(n) for n in metadata["grid"].split(","))
        except (KeyError, ValueError) as error:
            raise self._fault("metadata `grid` is not T,H,W") from error
        self._check()

    def sizes(self) -> list[tuple[int, int]]:
        """Head sizes and numbers of tokens."""
        shapes = [self._shapes[f"{layer}.q"] for layer in self.layers]
        return list(dict.fromkeys((shape[3], shape[2]) for shape in shapes))

    def tensors(self, layer: str, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of a layer in bfloat16, which all kernels take."""
        with safe_open(self._path, "pt") as file:
            q, k, v = (
                file.get_tensor(f"{layer}.{name}").to(device, torch.bfloat16) for name in _NAMES
            )
        return q, k, v

    def _check(self) -> None:
        if len(self.grid) != 3 or self.text not in TEXT_PLACES:
            raise self._fault(f"grid {self.grid} or text {self.text!r} is not one")
        if not self.layers:
            raise self._fault("there is no tensor")
        for layer in self.layers:
            shapes = {self._shapes.get(f"{layer}.{name}") for name in _NAMES}
            shape = shapes.pop()
            if shapes or shape is None or len(shape) != 4:
                raise self._fault(f"layer {layer!r} has no q, k and v of one shape [B, N, S, D]")
            text_tokens = shape[2] - math.prod(self.grid)
            if text_tokens < 0 or (self.text == "none") != (text_tokens == 0):
                raise self._fault(
                    f"layer {layer!r} has {shape[2]} tokens, grid {self.grid} and text {self.text}"
                )

    def _fault(self, why: str) -> InvalidInputError:
        return InvalidInputError(f"--tensors {self._path}: {why}; see captured.save")


def errors_of(captured: Captured, peers: Sequence[Peer], device: torch.device) -> list[Row]:
    """Rows of every layer: the errors of its heads, by ours in both precisions and by the peers.

    A peer whose rounding may be left out of its time is there once.
    """
    ways: dict[str, tuple[Attention, str]] = {
        precision: (partial(_ours, captured, precision), "") for precision in PRECISIONS
    }
    ways |= {peer.name: (peer.attention, peer.version) for peer in peers if not peer.ready}
    rows = []
    for layer in captured.layers:
        q, k, v = captured.tensors(layer, device)
        heads = list(product(range(q.shape[0]), range(q.shape[1])))
        for precision, (attention, version) in ways.items():
            errors = head_errors(q, k, v, attention(q, k, v), heads)
            row: Row = {
                "layer": layer,
                "precision": precision,
                "tokens": q.shape[2],
                "head_size": q.shape[3],
                "heads": len(heads),
                "relative_error_mean": round(sum(errors) / len(errors), 5),
                "relative_error_worst": round(max(errors), 5),
            }
            rows.append(row | ({"version": version} if version else {}))
            print(rows[-1], flush=True)
    return rows


def _ours(captured: Captured, precision: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    text: Any = captured.text
    return rainfusion_attention(
        q, k, v, captured.grid, text=text, method=METHOD, precision=precision, sparsity=0.0
    )
