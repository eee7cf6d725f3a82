"""What `PipelineWorker` does with a diffusers pipeline: loads one, reports its steps."""

from __future__ import annotations

import inspect
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.console import one_line
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import get_model
from rainfusion_trt.runtime.loading import pipe_of_checkpoint
from rainfusion_trt.runtime.pipeline import PipelineOutput
from rainfusion_trt.serve.worker import StepRan


def demo_pipeline(device: str) -> tuple[Any, dict[str, Any]]:
    """The pipeline that ships with the package, and what a request of it gets by default."""
    from rainfusion_trt.demo.trained import TRAINED_SIZE, load_trained

    dtype = torch.float16 if torch.device(device).type == "cuda" else torch.float32
    size = {name: getattr(TRAINED_SIZE, name) for name in ("width", "height", "frames")}
    return load_trained(dtype), {**size, "steps": 30, "guidance": 1.0}  # as in the demo


def load_pipeline(model: str | None, checkpoint: str | None, weights: Mapping[str, Path]) -> Any:
    """The diffusers pipeline of a checkpoint, with its transformers, on the CPU.

    Parameters
    ----------
    model, checkpoint
        Of `Pipeline`.
    weights
        Files of transformers in the place of the checkpoint's, by component.

    Raises
    ------
    InvalidInputError
        Nothing was named, or nothing usable is there, or a file of a transformer that there is not.
    UnsupportedError
        The model has no `Pipeline`.
    """
    if checkpoint is None or model is None:
        raise InvalidInputError("give model and checkpoint, an engine with its checkpoint, or demo")
    chosen = get_model(model)
    if chosen.no_pipeline:
        raise UnsupportedError(f"Pipeline does not drive {chosen.name}: {chosen.no_pipeline}")
    for component in weights:
        if component not in chosen.components:
            raise InvalidInputError(
                f"{chosen.name} has one transformer: leave out that of {component}"
            )
    dtype = chosen.defaults.dtype
    own = {name: chosen.load(file, dtype=dtype, component=name) for name, file in weights.items()}
    return pipe_of_checkpoint(chosen, checkpoint, dtype=dtype, **own)


def device_fault(device: torch.device) -> str | None:
    """Why nothing more can be computed on a device in this process; None while it works.

    Some errors of CUDA, such as an access to a wrong address, stay in its context: every later call
    has them too, whoever makes it. Others concern one call, such as a shape that an engine does not
    take. So the device is asked, and not the error.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
        torch.zeros(1, device=device).add_(1.0).item()
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        return f"the GPU has failed ({type(error).__name__}: {one_line(str(error))[:200]})"
    return None


def steps_of(result: PipelineOutput) -> tuple[StepRan, ...]:
    """What the steps of a run were, with their times."""
    times = {row.step: row for row in result.timings}
    return tuple(
        StepRan(
            step=report.step,
            sparsity=report.sparsity,
            precision=report.precision,
            density=report.density,
            sparse_attentions=report.routed if report.sparsity > 0.0 else 0,
            dense_attentions=report.dense + (report.routed if report.sparsity == 0.0 else 0),
            skipped_attentions=report.skipped,
            milliseconds=times[report.step].total_ms if report.step in times else None,
            transformer_milliseconds=(
                times[report.step].transformer_ms if report.step in times else None
            ),
        )
        for report in result.steps
    )


def parameters(pipe: Any) -> Mapping[str, inspect.Parameter]:
    """Of a diffusers pipeline's call."""
    return inspect.signature(type(pipe).__call__).parameters


def picture(data: bytes) -> Any:
    """The image of a PNG file that `rainfusion_trt.serve.image` has written."""
    from PIL import Image

    return Image.open(io.BytesIO(data), formats=("PNG",)).convert("RGB")
