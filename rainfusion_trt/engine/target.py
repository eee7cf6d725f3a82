"""Chooses the hardware that an engine is built for, and a TensorRT that can do it."""

from __future__ import annotations

import logging

import torch

from rainfusion_trt.engine.flavour import TensorRTFlavour, available_flavours, load_tensorrt
from rainfusion_trt.engine.onnx_file import OnnxFile
from rainfusion_trt.engine.recipe import check_targets
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError, UnsupportedError
from rainfusion_trt.operator.native import Dtype, Method, NativeLibrary, Precision, Problem
from rainfusion_trt.operator.settings import EIGHT_BIT_CAPABILITY

logger = logging.getLogger(__name__)


def choose_targets(chosen: str | list[str] | tuple[str, ...]) -> tuple[str, ...] | None:
    """Named compute capabilities, or None for the GPU of this machine."""
    names = [chosen] if isinstance(chosen, str) else chosen
    names = tuple(part.strip() for name in names for part in name.split(","))
    if names == ("native",):
        return None
    try:
        check_targets(names)
    except ValueError as error:
        raise InvalidInputError(str(error)) from error
    return names


def choose_flavour(flavour: str | None, targets: tuple[str, ...] | None) -> TensorRTFlavour:
    if flavour is None and targets is not None and "tensorrt_rtx" in available_flavours():
        flavour = "tensorrt_rtx"
    tensorrt = load_tensorrt(flavour)
    if tensorrt.name == "tensorrt" and targets is not None:
        raise InvalidInputError(
            f"{tensorrt} builds for the GPU of this machine only, not for {', '.join(targets)}: "
            "use target native on the machine that will run the engine, or install "
            "TensorRT for RTX"
        )
    return tensorrt


def native_device() -> tuple[str, str]:
    """Compute capability and name of the GPU that a native engine is built for."""
    if not torch.cuda.is_available():
        raise BackendUnavailableError(
            "target native needs an NVIDIA GPU and a CUDA build of torch, and torch sees none; to "
            "build for another machine name its compute capability, for example --target sm89 "
            "(TensorRT for RTX)"
        )
    major, minor = torch.cuda.get_device_capability()
    return f"sm{major}{minor}", torch.cuda.get_device_name()


def check_graph(library: NativeLibrary, file: OnnxFile) -> None:
    """Raise UnsupportedError for a head size or an element type without a kernel.

    Of a file of 8 bits for a head size without one of 8 bits.
    """
    precision = file.precision
    if precision is not None and precision.upper() not in Dtype.__members__:
        raise UnsupportedError(
            f"{file.path} is in {precision}; the plugin computes in "
            f"{' and '.join(name.lower() for name in Dtype.__members__)}: "
            "export the model with --dtype fp16 or --dtype bf16"
        )
    dtype = Dtype.FLOAT16 if precision is None else Dtype[precision.upper()]
    for size in file.head_sizes:
        if not _has_kernel(library, size, dtype):
            sizes = [n for n in range(8, 513, 8) if _has_kernel(library, n, dtype)]
            raise UnsupportedError(
                f"{file.path}: head size {size} has no kernel; supported head sizes are "
                f"{', '.join(map(str, sizes))}"
            )
        if file.eight_bit and not _has_kernel(library, size, dtype, Precision.BITS_8):
            raise UnsupportedError(
                f"{file.path}: head size {size} has no 8-bit kernel; export the model with "
                "--attention-precision 16bit"
            )


def _has_kernel(
    library: NativeLibrary,
    head_size: int,
    dtype: Dtype,
    precision: Precision = Precision.BITS_16,
) -> bool:
    method = Method.PIECEWISE  # which every precision has
    one_token = {"batch": 1, "heads": 1, "tokens": 1, "grid_t": 1, "grid_h": 1, "grid_w": 1}
    try:
        library.check(
            Problem(
                head_size=head_size, dtype=dtype, method=method, precision=precision, **one_token
            )
        )
    except UnsupportedError:
        return False
    return True


def check_kernels(
    library: NativeLibrary, targets: tuple[str, ...], *, eight_bit: bool = False
) -> None:
    """Say now if the finished engine could not run for want of kernels in the plugin.

    A library that was built for other GPUs is a warning, in 8 bits as in 16: an engine may run with
    another build of it, as one for another machine does.

    Raises
    ------
    UnsupportedError
        The file is of 8 bits, and a target has none in any library.
    """
    for target in targets:
        capability = divmod(int(target.removeprefix("sm")), 10)
        try:
            library.check_device(*capability)
        except UnsupportedError as error:
            logger.warning("the engine will load on %s but not run: %s", target, error)
            if capability >= EIGHT_BIT_CAPABILITY:
                continue  # what it lacks in 8 bits it lacks in all
        if eight_bit:
            try:
                library.check_precision(Precision.BITS_8, *capability)
            except UnsupportedError as error:
                raise UnsupportedError(f"target {target}: {error}") from error
