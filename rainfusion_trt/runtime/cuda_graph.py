"""Captures work on a CUDA stream once and replays it, through cuda-python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rainfusion_trt.errors import BackendUnavailableError, KernelError


class CapturedGraph:
    """What `enqueue` puts on `stream`, captured.

    torch.cuda.CUDAGraph would do for torch's own work; here nothing may be allocated while
    capturing, so torch's private pools for graphs are not needed.

    Parameters
    ----------
    stream : torch.cuda.Stream
        Not the default stream.
    enqueue : callable
        Puts the work on the stream, without allocating memory or waiting for the device.

    Raises
    ------
    BackendUnavailableError
        cuda-python is not installed.
    KernelError
        CUDA refuses the capture.
    """

    def __init__(self, stream: torch.cuda.Stream, enqueue: Callable[[], None]) -> None:
        self._stream = stream
        self._cudart = import_cudart()
        # Thread-local: other threads may allocate while this one captures.
        mode = self._cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(self._cudart.cudaStreamBeginCapture(stream.cuda_stream, mode), "begin capture")
        try:
            enqueue()
        except BaseException:
            # The stream must leave capture mode; that the graph is broken is no news. What was
            # captured would hold NCCL's communicator, which waits for its graphs when it ends.
            status, *rest = self._cudart.cudaStreamEndCapture(stream.cuda_stream)
            if status == self._cudart.cudaError_t.cudaSuccess:
                self._cudart.cudaGraphDestroy(*rest)
            raise
        graph = self._check(self._cudart.cudaStreamEndCapture(stream.cuda_stream), "end capture")
        try:
            self._executable = self._check(
                self._cudart.cudaGraphInstantiate(graph, 0), "instantiate the graph"
            )
        finally:
            self._cudart.cudaGraphDestroy(graph)

    def replay(self) -> None:
        """Launch the captured work on its stream."""
        launched = self._cudart.cudaGraphLaunch(self._executable, self._stream.cuda_stream)
        self._check(launched, "launch the graph")

    def close(self) -> None:
        """Free the graph; a launch that is under way still finishes."""
        if self._executable is not None:
            self._cudart.cudaGraphExecDestroy(self._executable)
            self._executable = None

    def _check(self, result: tuple[Any, ...], action: str) -> Any:
        status, *values = result
        if status != self._cudart.cudaError_t.cudaSuccess:
            text = self._cudart.cudaGetErrorString(status)[1].decode()
            raise KernelError(f"CUDA graph: cannot {action}: {text}; run with cuda_graph=False")
        return values[0] if values else None


def import_cudart() -> Any:
    """cuda-python's binding of the CUDA runtime.

    Raises
    ------
    BackendUnavailableError
        It is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise BackendUnavailableError(
            f"cuda_graph=True needs cuda-python ({error}): pip install 'rainfusion-trt[cuda]'"
        ) from error
    return runtime
