"""How long a worker may take from one step to the next before it counts as one that hangs."""

from __future__ import annotations

import time


class StepLimit:
    """Time since a generation last gave a sign of its own.

    Parameters
    ----------
    seconds : float
        The longest that may pass: from the start to the first step, between two, and from the last
        one to the file, which includes texts, decoding and compilation.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._last = time.monotonic()

    def step(self) -> None:
        """Note a step."""
        self._last = time.monotonic()

    def left(self) -> float:
        """Seconds until the limit; below 0 once it is passed."""
        return self._last + self.seconds - time.monotonic()

    def fault(self) -> str | None:
        """Why the worker has to be replaced; None while the limit is kept."""
        if self.left() > 0.0:
            return None
        return f"the worker hangs: it made no step for {self.seconds:g} s (step_limit_s)"
