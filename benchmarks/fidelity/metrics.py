"""Score videos by scikit-image's PSNR and SSIM, in processes beside the GPU's work."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.sampling import decode_video
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError

SAME = 100.0  # dB, for videos without a differing pixel, whose PSNR is infinite


@dataclass(frozen=True)
class Score:
    """Similarity of one video to another.

    Attributes
    ----------
    psnr : float
        dB over all pixels of all frames, at most `SAME`.
    ssim : float
        Mean over the frames.
    """

    psnr: float
    ssim: float


def video_psnr(reference: np.ndarray, video: np.ndarray) -> float:
    """PSNR in dB over all pixels of uint8 [F, H, W, 3]."""
    from skimage.metrics import peak_signal_noise_ratio

    if np.array_equal(reference, video):
        return SAME
    return min(SAME, float(peak_signal_noise_ratio(reference, video, data_range=255)))


def video_ssim(reference: np.ndarray, video: np.ndarray) -> float:
    """Mean SSIM of the frames of uint8 [F, H, W, 3], scikit-image's 7 x 7 uniform window.

    The codec repeats frames; a pair equal to the one before is not computed again.
    """
    from skimage.metrics import structural_similarity

    values: list[float] = []
    for i, (a, b) in enumerate(zip(reference, video, strict=True)):
        if i and np.array_equal(a, reference[i - 1]) and np.array_equal(b, video[i - 1]):
            values.append(values[-1])
        else:
            values.append(float(structural_similarity(a, b, channel_axis=2, data_range=255)))
    return float(np.mean(values))


def score(codec: Path, reference: np.ndarray, latents: np.ndarray) -> Score:
    """Score latents [T, C, h, w] against others, both decoded by the codec of a folder."""
    if reference.shape != latents.shape:
        raise InvalidInputError(f"videos of shapes {reference.shape} and {latents.shape}")
    a, b = (_decoded(codec, x) for x in (reference, latents))
    return Score(video_psnr(a, b), video_ssim(a, b))


def scikit_image_version() -> str:
    """The version of scikit-image, checked before any work starts.

    Raises
    ------
    BackendUnavailableError
        It is not installed.
    """
    try:
        import skimage  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            "PSNR and SSIM need scikit-image: pip install scikit-image"
        ) from error
    return metadata.version("scikit-image")


class Scorer:
    """Scores batches of videos against the dense ones while the next are sampled.

    Parameters
    ----------
    codec : Path
        Folder of the codec.
    dense : Tensor
        Latents [seeds, T, C, h, w] to compare with.
    workers : int
        Processes; 0 scores in a thread of this one.
    """

    def __init__(self, codec: Path, dense: Tensor, workers: int) -> None:
        self._codec = codec
        self._dense = dense.float().numpy()
        # A process that holds a CUDA context must not be forked.
        self._pool: Executor = (
            ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _one_thread)
            if workers
            else ThreadPoolExecutor(1)
        )

    def submit(self, latents: Tensor) -> Sequence[Future[Score]]:
        """Start scoring latents [seeds, T, C, h, w]."""
        pairs = zip(self._dense, latents.float().numpy(), strict=True)
        return [self._pool.submit(score, self._codec, a, b) for a, b in pairs]

    def close(self) -> None:
        """Drop what has not started."""
        self._pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


@lru_cache
def _codec(folder: Path) -> PatchCodec:
    return PatchCodec.from_pretrained(folder)


def _decoded(folder: Path, latents: np.ndarray) -> np.ndarray:
    return decode_video(torch.from_numpy(latents), _codec(folder))
