"""Where the video lies in the attention of ComfyUI's own model classes.

They are told by their names, since none of them is imported; subclasses are told by their bases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rainfusion_trt.operator.settings import TextPlace

Call = Mapping[str, Any]  # arguments of a forward, by name


@dataclass(frozen=True)
class Place:
    """The video in a forward's self-attention.

    Attributes
    ----------
    grid
        T, H and W in tokens.
    text
        Where other tokens stand, if there are any.
    others
        How many they are; None where only the attention tells.
    separate
        Lengths of sequences that are not the video's, such as the text of cross-attention.
    problem
        Why this forward cannot be sparse.
    """

    grid: tuple[int, int, int]
    text: TextPlace = "none"
    others: int | None = 0
    separate: tuple[int, ...] = ()
    problem: str | None = None

    @property
    def video(self) -> int:
        """Tokens of the video."""
        return math.prod(self.grid)

    def holds(self, queries: int, keys: int) -> bool:
        """Whether attention of these lengths is the video's self-attention."""
        if queries != keys or queries in self.separate:
            return False
        if self.others is None:
            return queries > self.video
        return queries == self.video + self.others


def place_of(model: Any) -> Callable[[Any, Call], Place] | None:
    """How to read the place off a forward of `model`; None for a class that is not known."""
    names = {base.__name__ for base in type(model).__mro__}
    if "LTXAVModel" in names:  # audio in the same forward
        return None
    for name, reader in _READERS.items():
        if name in names:
            return reader
    return None


def _grid(x: Any, patch: tuple[int, int, int], frames: int = 0) -> tuple[int, int, int]:
    """Latents [B, C, T, H, W] are padded to whole patches."""
    time, height, width = x.shape[2:]
    return (
        -(-(time + frames) // patch[0]),
        -(-height // patch[1]),
        -(-width // patch[2]),
    )


def _crossed(place: Place, call: Call) -> Place:
    """With the text of cross-attention, which must not be as long as the video."""
    length = call["context"].shape[1]
    if length != place.video + (place.others or 0):
        return place
    return Place(
        place.grid,
        problem=f"the text has as many tokens, {length}, as the video, so that their attentions "
        "cannot be told apart; use another size",
    )


def _wan(model: Any, call: Call) -> Place:
    added = call.get("time_dim_concat")
    grid = _grid(call["x"], model.patch_size, 0 if added is None else added.shape[2])
    reference = call.get("reference_latent")
    if reference is None or getattr(model, "ref_conv", None) is None:
        return _crossed(Place(grid), call)
    _, down, across = model.patch_size  # of its convolution, which drops what is no whole patch
    tokens = (reference.shape[-2] // down) * (reference.shape[-1] // across)
    return _crossed(Place(grid, "first", tokens), call)


def _hunyuan(model: Any, call: Call) -> Place:
    if len(model.patch_size) != 3 or call["x"].dim() != 5:
        return Place((1, 1, 1), problem=f"{type(model).__name__} makes pictures here, no video")
    grid = _grid(call["x"], model.patch_size)
    if call.get("ref_latent") is not None:
        return Place(grid, problem="a reference latent stands before the video, and text behind it")
    # Text of several encoders is joined inside; that of the first is refined on its own before.
    return Place(grid, "last", None, separate=(call["context"].shape[1],))


def _ltx(model: Any, call: Call) -> Place:
    grid = _grid(call["x"], tuple(model.patchifier.patch_size))
    if call.get("keyframe_idxs") is not None:
        return Place(grid, problem="guide frames stand behind the video, outside of their time")
    return _crossed(Place(grid), call)


def _cogvideox(model: Any, call: Call) -> Place:
    patch = (model.patch_size_t or 1, model.patch_size, model.patch_size)
    return Place(_grid(call["x"], patch), "first", call["context"].shape[1])


_READERS: dict[str, Callable[[Any, Call], Place]] = {
    "WanModel": _wan,
    "HunyuanVideo": _hunyuan,
    "LTXVModel": _ltx,
    "CogVideoXTransformer3DModel": _cogvideox,
}
