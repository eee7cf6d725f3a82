"""``ParallelConfig``: how a clip is made on several GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from rainfusion_trt.errors import InvalidInputError, UnsupportedError


@dataclass(frozen=True)
class ParallelConfig:
    """Several processes, one GPU each, make one clip together.

    Attributes
    ----------
    ulysses : int
        Processes that share the tokens of a clip, and in attention its heads.
    guidance : int
        2 gives the halves of classifier-free guidance to two groups of `ulysses` processes.
    timeout : float
        Seconds that a process waits for another one within a generation; then all end with an
        error. One that ends, ends the others at once.
    ring, tensor : int
        Only 1; other values are an error that says why.
    overlap : bool
        Cut the heads of each process into two groups, of which one attends while the other one's
        tokens travel. The PyTorch transformer alone; off, as it was not measured yet.

    Raises
    ------
    InvalidInputError, UnsupportedError
        A value that cannot be.
    """

    ulysses: int = 1
    guidance: int = 1
    timeout: float = 60.0
    ring: int = 1
    tensor: int = 1
    overlap: bool = False

    def __post_init__(self) -> None:
        for name in ("ulysses", "guidance", "ring", "tensor"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"{name}={value!r}: give an integer from 1 on")
        if self.ring > 1:
            raise UnsupportedError(
                f"ring={self.ring}: ring attention gives each process a part of the keys, and "
                "RainFusion chooses among all of them; use ulysses="
            )
        if self.tensor > 1:
            raise UnsupportedError(
                f"tensor={self.tensor}: diffusers has no tensor-parallel plan for these models; "
                "use ulysses="
            )
        if self.guidance > 2:
            raise InvalidInputError(
                f"guidance={self.guidance}: guidance has two halves; give 1 or 2, and ulysses= for "
                "more processes"
            )
        if type(self.overlap) is not bool:
            raise InvalidInputError(f"overlap={self.overlap!r}: give True or False")
        if self.overlap and self.ulysses == 1:
            raise InvalidInputError(
                "overlap=True hides the exchange of tokens, and ulysses=1 has none: give ulysses= "
                "from 2 on, or leave it out"
            )
        given: Any = self.timeout
        is_number = isinstance(given, Real) and not isinstance(given, bool)
        if not (is_number and math.isfinite(given) and given > 0):
            raise InvalidInputError(f"timeout={given!r}: give seconds above 0")

    @property
    def processes(self) -> int:
        """How many there are."""
        return self.ulysses * self.guidance
