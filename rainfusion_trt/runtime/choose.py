"""Which backend runs: the first that can, and none that is dense unless that is allowed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from rainfusion_trt.errors import BackendUnavailableError, RainFusionError
from rainfusion_trt.runtime.denoiser import Denoiser

logger = logging.getLogger("rainfusion_trt")


def first_that_runs(names: Sequence[str], load: Callable[[str], Denoiser]) -> Denoiser:
    """Load the first of these backends that can run here; a warning says what could not.

    Raises
    ------
    RainFusionError
        None can: what the last one said.
    """
    for index, name in enumerate(names):
        try:
            return load(name)
        except RainFusionError as error:
            if index + 1 == len(names):
                raise
            logger.warning(
                "%s cannot run here (%s); falling back to %s", name, error, names[index + 1]
            )
    raise BackendUnavailableError("no backend to try")


def refuse_dense(name: str, *, allow_dense: bool) -> None:
    """Fail, or warn where dense attention is allowed, as `name` has no other.

    Raises
    ------
    BackendUnavailableError
        It is not allowed.
    """
    message = f"{name} runs the dense body of the attention, whatever the sparsity"
    if not allow_dense:
        raise BackendUnavailableError(
            f"{message}: pass sparsity=0 or allow_dense=True to run dense, or use an engine or "
            "backend='torch' for sparse attention"
        )
    logger.warning("%s: this run is dense, as allow_dense=True permits", message)
