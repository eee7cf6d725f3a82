"""The sizes of one experiment: token grids, the model, and the window shapes that are compared."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

Shape = tuple[int, int, int]


class ClipTokens:
    """Counts of the tokens of a clip: text, then frames of which the first is a sink."""

    grid: Shape
    text: int

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


@dataclass(frozen=True)
class Scene(ClipTokens):
    """Token grids (frames, rows, columns), the model's size and the shapes of windows.

    Attributes
    ----------
    grid, coarse
        Token grids of the second and of the first training stage. The first frame is a sink.
    tile
        Most queries and most keys of a block: the tiles in which work is counted.
    shapes
        Named pairs of a query window and a key window that divide the non-sink grid; ``cube``
        and ``long`` are always there. Where those of ``ONLINE`` are, heads choose among them.
    extent
        Rows and columns over which the rotary embedding is spread; None: those of the grid.
    usable
        Least frames of a shot that takes part in the split. Scenes whose weights are exchanged
        have the same, so that what one held out no other trains on.
    """

    grid: Shape
    coarse: Shape
    tile: tuple[int, int]
    shapes: dict[str, tuple[Shape, Shape]] = field(hash=False)
    extent: tuple[int, int] | None = None
    usable: int = 13
    text: int = 16
    heads: int = 12
    layers: int = 12
    head_size: int = 64
    batches: tuple[int, int] = (16, 4)
    decode_steps: int = 30

    @property
    def spread(self) -> tuple[int, int]:
        """Rows and columns over which the rotary embedding is spread."""
        return self.extent or self.grid[1:]

    @property
    def longer(self) -> bool:
        """Whether clips are longer than those of the split; then the shapes are compared."""
        return self.grid[0] > self.usable

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
# Clips of four seconds, tuned from weights of FULL: 32 free frames, of which windows span all, a
# half (what the rule of docs/rainfusion.md chooses), a quarter or an eighth.
LONGER = Scene(
    grid=(33, 16, 24),
    coarse=(33, 16, 24),
    tile=(192, 128),
    extent=FULL.grid[1:],
    usable=FULL.usable,
    shapes={
        "cube": ((4, 8, 6), (4, 4, 8)),
        "long": ((16, 4, 3), (16, 2, 4)),
        "eight": ((8, 4, 6), (8, 4, 4)),
        "all": ((32, 2, 3), (32, 2, 2)),
        "half-wide": ((16, 2, 6), (16, 2, 4)),
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
    usable=5,
    heads=2,
    layers=2,
    head_size=16,
    batches=(2, 1),
    decode_steps=2,
)
TINY_LONGER = replace(
    TINY,
    grid=(9, 4, 6),
    coarse=(9, 4, 6),
    extent=TINY.grid[1:],
    shapes={
        "cube": ((2, 4, 3), (2, 2, 3)),
        "long": ((4, 2, 3), (4, 2, 2)),
        "all": ((8, 1, 3), (8, 1, 2)),
    },
)
# By the name of the command line: the scene, and the tiny one of a dry run.
SCENES = {"full": (FULL, TINY), "longer": (LONGER, TINY_LONGER)}
