"""PSNR, SSIM and flicker of videos, in processes beside the GPU's work."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Future, ProcessPoolExecutor
from types import TracebackType

import numpy as np
import torch

from benchmarks.fidelity.metrics import scikit_image_version, video_psnr, video_ssim

Scores = tuple[float, float, float]
Pending = Future[Scores]


def score(reference: np.ndarray, video: np.ndarray) -> Scores:
    """PSNR in dB, mean SSIM, and the relative error of what changes from frame to frame."""
    return video_psnr(reference, video), video_ssim(reference, video), flicker(reference, video)


def flicker(reference: np.ndarray, video: np.ndarray) -> float:
    """Norm of the error of differences between neighbouring frames, over that of theirs."""
    wanted, found = (np.diff(x.astype(np.float32), axis=0) for x in (reference, video))
    length = float(np.linalg.norm(wanted))
    error = float(np.linalg.norm(found - wanted))
    return error / length if length else float(error > 0)


class PixelScorer:
    """A pool of processes; a process that holds a CUDA context must not be forked."""

    def __init__(self, workers: int | None = None) -> None:
        scikit_image_version()  # refused before any work
        cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        spawn = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(
            workers or max(1, min(8, cores - 1)), spawn, torch.set_num_threads, (1,)
        )

    def submit(self, reference: np.ndarray, video: np.ndarray) -> Pending:
        """Start scoring uint8 RGB frames [F, H, W, 3] against others."""
        return self.pool.submit(score, reference, video)

    def __enter__(self) -> PixelScorer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(cancel_futures=True)
