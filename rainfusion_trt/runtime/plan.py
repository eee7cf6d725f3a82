"""What the steps of a call are going to run: checked, and said, before and as it starts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.models.transformer import config_of
from rainfusion_trt.operator.settings import AttentionSettings, Precision
from rainfusion_trt.operator.sparse_grid import explain_obstacle, obstacle_to_sparsity
from rainfusion_trt.runtime.choose import refuse_dense
from rainfusion_trt.runtime.denoiser import Denoiser
from rainfusion_trt.runtime.precision import in_words
from rainfusion_trt.runtime.schedule import Schedule, foreseen, summary
from rainfusion_trt.sigma_schedule import SigmaSchedule

logger = logging.getLogger("rainfusion_trt")


def check_plan(
    schedule: Schedule,
    precisions: Sequence[Precision],
    pipe: Any,
    steps: int,
    denoiser: Denoiser,
    *,
    allow_dense: bool,
) -> tuple[float, ...] | SigmaSchedule:
    """Check the sparsity of every step against scheduler and backend; say it, and its precision.

    Returns
    -------
    tuple of float or SigmaSchedule
        What is going to be asked of the steps.

    Raises
    ------
    InvalidInputError, UnsupportedError
        The schedule does not fit these steps, or this scheduler.
    BackendUnavailableError
        The backend has dense attention only, and nobody allowed that.
    """
    planned, peak, shown = foreseen(schedule, pipe, steps)
    if not denoiser.sparse:
        if peak > 0.0:
            refuse_dense(denoiser.name, allow_dense=allow_dense)
        shown = summary((0.0,) * steps)
    logger.info("%s on %s, sparsity per step: %s", denoiser.name, denoiser.device, shown)
    if "8bit" in precisions:
        logger.info("precision per step: %s", in_words(precisions))
    return planned


def why_dense(
    model: VideoModel,
    settings: AttentionSettings,
    transformer: nn.Module,
    call: Mapping[str, Any],
    sparsity: float,
    precision: Precision | None = None,
) -> str | None:
    """What makes this sparsity one without effect in a call of the transformer, if anything.

    In another precision than that of the settings, if one is given.
    """
    if precision is not None:
        settings = settings.replace(precision=precision)
    grid = model.grid_shape(transformer, call)
    obstacle = obstacle_to_sparsity(grid, settings, model.head_size(config_of(transformer)))
    return obstacle and explain_obstacle(obstacle, grid, settings, sparsity)
