"""A worker without a model: it counts steps and writes the same small video every time."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np

from rainfusion_trt.serve.worker import (
    GenerationRequest,
    Media,
    ModelDescription,
    OnStep,
    Ran,
    StepRan,
)
from rainfusion_trt.video import save_video


class NoopWorker:
    """Makes nothing, by the interface of `rainfusion_trt.serve.worker.Worker`.

    Parameters
    ----------
    step_seconds : float
        That a step takes.
    starts : tuple of tuple of str
        See `ModelDescription`.
    gpus : int
        As of every worker.
    """

    def __init__(
        self,
        *,
        step_seconds: float = 0.0,
        starts: tuple[tuple[str, ...], ...] = ((),),
        gpus: int = 0,
    ) -> None:
        self._step_seconds = step_seconds
        self._starts = starts
        with tempfile.TemporaryDirectory() as folder:
            grey = np.full((5, 16, 16, 3), 127, dtype=np.uint8)
            self._video = save_video(grey, Path(folder) / "video.mp4", fps=8).read_bytes()

    def describe(self) -> ModelDescription:
        """A model of small videos."""
        return ModelDescription(
            model="noop",
            backend="none",
            width=16,
            height=16,
            frames=5,
            fps=8,
            steps=2,
            guidance=1.0,
            methods=("rainfusion", "piecewise"),
            starts=self._starts,
        )

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        """Count the steps."""
        start = time.monotonic()
        steps = []
        for step in range(request.steps):
            time.sleep(self._step_seconds)
            steps.append(self._step(step))
            on_step(step + 1, request.steps)
        output.write_bytes(self._video)
        return Ran(
            model="noop",
            backend="none",
            device="cpu",
            method=None,
            seed=request.seed,
            width=16,
            height=16,
            frames=5,
            fps=request.fps,
            guidance=None,
            steps=tuple(steps),
            generate_seconds=time.monotonic() - start,
            encode_seconds=0.0,
        )

    def fault(self) -> str | None:
        """It cannot break."""
        return None

    def _step(self, step: int) -> StepRan:
        return StepRan(
            step=step, sparsity=0.0, density=1.0, sparse_attentions=0, dense_attentions=0
        )
