"""The sizes of one experiment: token grids, the model, and the window shapes that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """Token grids (frames, rows, columns), the model's size and the shapes of windows.

    Attributes
    ----------
    grid, coarse
        Token grids of the second and of the first training stage. The first frame is a sink.
    tile
        Most queries and most keys of a block: the tiles in which work is counted.
    shapes
        Named pairs of a query window and a key window that divide the non-sink grid. Those
        of ``ONLINE`` must be there: heads choose among them, and ``cube`` is the main one.
    """

    grid: Shape
    coarse: Shape
    tile: tuple[int, int]
    shapes: dict[str, tuple[Shape, Shape]] = field(hash=False)
    text: int = 16
    heads: int = 12
    layers: int = 12
    head_size: int = 64
    batches: tuple[int, int] = (16, 4)
    decode_steps: int = 30

    @property
    def place(self) -> int:
        """Tokens of a frame."""
        return self.grid[1] * self.grid[2]

    @property
    def sinks(self) -> int:
        """Text tokens and tokens of the first frame, in this order before all others."""
        return self.text + self.place

    @property
    def free_grid(self) -> Shape:
        """The grid of the tokens that are not sinks."""
        return (self.grid[0] - 1, *self.grid[1:])

    @property
    def free(self) -> int:
        """Video tokens that are not sinks."""
        return math.prod(self.free_grid)

    @property
    def tokens(self) -> int:
        """All tokens of a sequence."""
        return self.sinks + self.free

    def pixels(self, grid: Shape) -> tuple[int, int]:
        """Height and width of the pictures of a token grid: 8 x 2 pixels a token."""
        return grid[1] * 16, grid[2] * 16


ONLINE = ("long", "cube", "flat")

FULL = Scene(
    grid=(13, 24, 40),
    coarse=(13, 12, 20),
    tile=(192, 128),
    shapes={
        "cube": ((4, 6, 8), (4, 4, 8)),
        "long": ((12, 4, 4), (12, 2, 5)),
        "flat": ((1, 8, 20), (1, 12, 10)),
        "same": ((2, 8, 8), (2, 8, 8)),
        "upright": ((4, 6, 8), (4, 8, 4)),
        "three": ((3, 8, 8), (3, 4, 10)),
        "six": ((6, 4, 8), (6, 2, 10)),
        "two": ((2, 12, 8), (2, 6, 10)),
        "two-wide": ((2, 12, 8), (2, 8, 8)),
        "long-even": ((12, 4, 4), (12, 2, 4)),
    },
)
TINY = Scene(
    grid=(5, 6, 8),
    coarse=(5, 4, 6),
    tile=(24, 16),
    shapes={
        "cube": ((2, 3, 4), (2, 2, 4)),
        "long": ((4, 2, 2), (4, 1, 4)),
        "flat": ((1, 6, 4), (1, 3, 4)),
        "same": ((2, 2, 4), (2, 2, 4)),
    },
    heads=2,
    layers=2,
    head_size=16,
    batches=(2, 1),
    decode_steps=2,
)
