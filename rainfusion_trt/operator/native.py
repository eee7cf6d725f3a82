"""The plugin library through ctypes: plugins/include/rainfusion/rainfusion.h, call by call.

As thin as the header: pointers and streams are integers; a status becomes an exception.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rainfusion_trt.errors import (
    InvalidInputError,
    KernelError,
    LibraryNotFoundError,
    ParallelError,
    RainFusionError,
    UnsupportedError,
)
from rainfusion_trt.operator.native_parallel import SIGNATURES as PARALLEL_SIGNATURES
from rainfusion_trt.operator.native_types import (
    Dtype,
    Method,
    Plan,
    Precision,
    Problem,
    Status,
    Strides,
    Tensors,
    Text,
)
from rainfusion_trt.plugin.build import find_library
from rainfusion_trt.plugin.elf import is_whole

if TYPE_CHECKING:
    from rainfusion_trt.operator.plan import HeadPlan

__all__ = [
    "ABI_VERSION",
    "Dtype",
    "Method",
    "NativeLibrary",
    "Plan",
    "Precision",
    "Problem",
    "Status",
    "Strides",
    "Tensors",
    "Text",
    "load_library",
]

ABI_VERSION = 6
"""RAINFUSION_ABI_VERSION of the header these structs were written from."""

_MESSAGE_BYTES = 1024


_LAUNCH = [
    ctypes.POINTER(Problem),
    ctypes.POINTER(Tensors),
    ctypes.POINTER(Plan),
    ctypes.c_void_p,  # workspace
    ctypes.c_size_t,
    ctypes.c_void_p,  # stream
]
_SIGNATURES = {
    "rainfusion_abi_version": (ctypes.c_int32, []),
    "rainfusion_workspace_layout": (ctypes.c_int32, []),
    "rainfusion_build_info": (ctypes.c_char_p, []),
    "rainfusion_method_name": (ctypes.c_char_p, [ctypes.c_int]),
    "rainfusion_check": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_check_head_size": (
        ctypes.c_int,
        [ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_check_device": (
        ctypes.c_int,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_check_precision": (
        ctypes.c_int,
        [ctypes.c_int, ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_block_counts": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int32)],
    ),
    "rainfusion_workspace_size": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.POINTER(ctypes.c_size_t)],
    ),
    "rainfusion_workspace_bound": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.POINTER(ctypes.c_size_t)],
    ),
    "rainfusion_block_mask_host": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.c_int, ctypes.c_float, ctypes.c_void_p],
    ),
    "rainfusion_classify": (ctypes.c_int, _LAUNCH),
    "rainfusion_attention": (ctypes.c_int, _LAUNCH),
    "rainfusion_status_string": (ctypes.c_char_p, [ctypes.c_int]),
    "rainfusion_last_error": (ctypes.c_char_p, []),
}
_EXCEPTIONS: dict[Status, type[RainFusionError]] = {
    Status.INVALID_ARGUMENT: InvalidInputError,
    Status.UNSUPPORTED: UnsupportedError,
    Status.WORKSPACE_TOO_SMALL: KernelError,
    Status.CUDA_ERROR: KernelError,
    Status.COMMUNICATION_ERROR: ParallelError,
}


def _plan(plan: Plan | HeadPlan | None) -> Plan | None:
    return plan if plan is None or isinstance(plan, Plan) else Plan.of(plan)


class NativeLibrary:
    """A loaded librainfusion_trt.so.

    Parameters
    ----------
    path : Path
        The shared library.

    Raises
    ------
    LibraryNotFoundError
        It cannot be loaded, lacks a function or has another ABI version.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if self.path.is_file() and not is_whole(self.path):  # loading it could end the process
            raise LibraryNotFoundError(
                f"{self.path} is not a RainFusion library: it is no shared library, or a part of "
                "one; rebuild it with `rainfusion-trt build-plugin`"
            )
        try:
            self._library = ctypes.CDLL(str(self.path))
            self._declare(["rainfusion_abi_version"])
            if self.abi_version == ABI_VERSION:  # another one may lack what this one has
                self._declare([*_SIGNATURES, *PARALLEL_SIGNATURES])
        except (OSError, AttributeError) as error:
            raise LibraryNotFoundError(
                f"{self.path} is not a RainFusion library: {error}; "
                "rebuild it with `rainfusion-trt build-plugin`"
            ) from error
        if self.abi_version != ABI_VERSION:
            raise LibraryNotFoundError(
                f"{self.path} has ABI version {self.abi_version}, this package needs "
                f"{ABI_VERSION}; rebuild it with `rainfusion-trt build-plugin`"
            )

    def _declare(self, names: Iterable[str]) -> None:
        known = {**_SIGNATURES, **PARALLEL_SIGNATURES}
        for name in names:
            function = getattr(self._library, name)
            function.restype, function.argtypes = known[name]

    @property
    def abi_version(self) -> int:
        return self._library.rainfusion_abi_version()

    @property
    def workspace_layout(self) -> int:
        """Number of the workspace's layout, which a built engine depends on."""
        return self._library.rainfusion_workspace_layout()

    @property
    def build_info(self) -> str:
        """Version, source hash and targets, e.g. ``0.1.0+3f2a9c1d5e0b7a42 sm_80 compute_80``."""
        return self._library.rainfusion_build_info().decode()

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order of `Method`."""
        names: list[str] = []
        while (name := self._library.rainfusion_method_name(len(names))) is not None:
            names.append(name.decode())
        return names

    def call(self, name: str, *arguments: object) -> None:
        """Call a function of parallel.h; see `rainfusion_trt.operator.native_parallel`."""
        self._raise(getattr(self._library, name)(*arguments))

    def check(self, problem: Problem) -> None:
        """Raise InvalidInputError or UnsupportedError if no kernel can run `problem`."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._raise(self._library.rainfusion_check(problem, message, _MESSAGE_BYTES), message)

    def check_head_size(self, head_size: int) -> None:
        """Raise UnsupportedError if there is no kernel for this head size."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._library.rainfusion_check_head_size(head_size, message, _MESSAGE_BYTES)
        self._raise(status, message)

    def check_device(self, major: int, minor: int) -> None:
        """Raise UnsupportedError if nothing the library was built to runs on this capability."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._library.rainfusion_check_device(major, minor, message, _MESSAGE_BYTES)
        self._raise(status, message)

    def check_precision(self, precision: Precision, major: int, minor: int) -> None:
        """Raise UnsupportedError if there is no kernel of a precision for this capability."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        check = self._library.rainfusion_check_precision
        self._raise(check(precision, major, minor, message, _MESSAGE_BYTES), message)

    def block_counts(self, problem: Problem) -> tuple[int, int]:
        """Number of query and of key blocks."""
        q_blocks, k_blocks = ctypes.c_int32(), ctypes.c_int32()
        self._raise(self._library.rainfusion_block_counts(problem, q_blocks, k_blocks))
        return q_blocks.value, k_blocks.value

    def workspace_size(self, problem: Problem) -> int:
        """Bytes of device memory that `classify` and `attention` need, for any sparsity."""
        size = ctypes.c_size_t()
        self._raise(self._library.rainfusion_workspace_size(problem, size))
        return size.value

    def workspace_bound(self, largest: Problem) -> int:
        """Bytes that are enough for every problem whose sizes are each at most these.

        Parameters
        ----------
        largest : Problem
            The attributes, and for each size its maximum; together they need not make a clip.
        """
        size = ctypes.c_size_t()
        self._raise(self._library.rainfusion_workspace_bound(largest, size))
        return size.value

    def block_mask_host(self, problem: Problem, kind: int, sparsity: float) -> np.ndarray:
        """Kept block pairs of a dense, spatial or temporal head.

        Returns
        -------
        numpy.ndarray
            bool [q_blocks, k_blocks].
        """
        mask = np.zeros(self.block_counts(problem), dtype=np.uint8)
        self._raise(
            self._library.rainfusion_block_mask_host(problem, kind, sparsity, mask.ctypes.data)
        )
        return mask.astype(bool)

    def classify(
        self,
        problem: Problem,
        tensors: Tensors,
        plan: Plan | HeadPlan,
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Enqueue ARM and plan on `stream` (a cudaStream_t as an integer)."""
        launch = self._library.rainfusion_classify
        self._raise(launch(problem, tensors, _plan(plan), workspace, workspace_bytes, stream))

    def attention(
        self,
        problem: Problem,
        tensors: Tensors,
        plan: Plan | HeadPlan | None,
        workspace: int,
        workspace_bytes: int,
        stream: int,
    ) -> None:
        """Enqueue ARM, plan and attention on `stream` (a cudaStream_t as an integer)."""
        launch = self._library.rainfusion_attention
        self._raise(launch(problem, tensors, _plan(plan), workspace, workspace_bytes, stream))

    def _raise(self, status: int, message: ctypes.Array | None = None) -> None:
        if status == Status.SUCCESS:
            return
        text = message.value if message is not None else self._library.rainfusion_last_error()
        text = text or self._library.rainfusion_status_string(status)
        raise _EXCEPTIONS.get(Status(status), KernelError)(text.decode(errors="replace"))


@functools.cache
def _load(path: Path) -> NativeLibrary:
    return NativeLibrary(path)


def load_library(path: str | Path | None = None) -> NativeLibrary:
    """Load librainfusion_trt.so, once a process and path.

    Parameters
    ----------
    path : str or Path, optional
        The library; by default what `rainfusion_trt.plugin.build.find_library` finds.

    Raises
    ------
    LibraryNotFoundError
        There is none, or it does not fit this package.
    """
    return _load(Path(path).resolve() if path is not None else find_library())
