"""Exceptions that name what is wrong and what to do about it."""

from __future__ import annotations


class RainFusionError(Exception):
    """Base of every error this package raises on purpose."""


class InvalidInputError(RainFusionError, ValueError):
    """An argument, shape or file does not fit; the message names the value and the remedy."""


class UnsupportedError(RainFusionError, NotImplementedError):
    """A head size, dtype, GPU or model without an implementation."""


class NotSparseError(UnsupportedError):
    """A call whose self-attention cannot be sparse: its tokens are no grid, or it has a mask."""


class LibraryNotFoundError(RainFusionError, FileNotFoundError):
    """The plugin library (librainfusion_trt.so) has not been built or cannot be loaded."""


class PluginBuildError(RainFusionError, RuntimeError):
    """The plugin could not be built; the message carries the log's last lines."""


class KernelError(RainFusionError, RuntimeError):
    """A CUDA call inside the library failed."""


class ExportError(RainFusionError, RuntimeError):
    """The model could not be exported, or the written file failed its checks."""


class EngineBuildError(RainFusionError, RuntimeError):
    """TensorRT could not build the engine; the message carries its last words."""


class EngineLoadError(RainFusionError, RuntimeError):
    """An engine folder is missing, corrupt, foreign or from another TensorRT."""


class BackendUnavailableError(RainFusionError, RuntimeError):
    """The asked-for backend cannot run here."""


class DenseAttentionError(RainFusionError, RuntimeError):
    """Attention ran, or can only run, dense although a sparsity was asked for."""


class NotFiniteError(RainFusionError, ArithmeticError):
    """A generation gave NaN or infinity."""


class GenerationCancelled(RainFusionError, RuntimeError):  # noqa: N818  (it is no fault)
    """A generation was ended between two steps, because the caller asked for that."""


class ParallelError(RainFusionError, RuntimeError):
    """Another process of a run on several GPUs failed, is lost or does not answer."""
