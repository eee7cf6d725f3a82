"""ctypes binding of plugins/include/rainfusion/rainfusion.h: structs, calls, status to exception.

As thin as the header: pointers and streams are integers, shapes are plain numbers. The ``of``
constructors read shapes, strides and addresses off torch tensors; nothing here imports torch.
"""

from __future__ import annotations

import ctypes
import enum
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rainfusion_trt.build_plugin import find_library
from rainfusion_trt.errors import (
    InvalidInputError,
    KernelError,
    LibraryNotFoundError,
    RainFusionError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from torch import Tensor

    from rainfusion_trt.plan import HeadPlan

ABI_VERSION = 1
"""RAINFUSION_ABI_VERSION of the header these structs were written from."""

_MESSAGE_BYTES = 1024


class Status(enum.IntEnum):
    SUCCESS = 0
    INVALID_ARGUMENT = 1
    UNSUPPORTED = 2
    WORKSPACE_TOO_SMALL = 3
    CUDA_ERROR = 4


class Dtype(enum.IntEnum):
    FLOAT16 = 0
    BFLOAT16 = 1


class Text(enum.IntEnum):
    NONE = 0
    FIRST = 1
    LAST = 2


class Method(enum.IntEnum):
    RAINFUSION = 0
    RAINFUSION_TWO_WAY = 1
    RAINFUSION_PLUS = 2
    RAINFUSION2 = 3


class Kind(enum.IntEnum):
    DENSE = 0
    SPATIAL = 1
    TEMPORAL = 2
    TEXTURAL = 3
    BLOCKS = 4


class Problem(ctypes.Structure):
    """RainfusionProblem: shapes and attributes, known to the host before a launch."""

    _fields_ = [
        ("batch", ctypes.c_int32),
        ("heads", ctypes.c_int32),
        ("tokens", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("grid_t", ctypes.c_int32),
        ("grid_h", ctypes.c_int32),
        ("grid_w", ctypes.c_int32),
        ("sink_frames", ctypes.c_int32),
        ("alpha", ctypes.c_float),
        ("softmax_scale", ctypes.c_float),
        ("text", ctypes.c_int),
        ("method", ctypes.c_int),
        ("dtype", ctypes.c_int),
    ]

    @classmethod
    def of(
        cls,
        q: Tensor,
        grid: Sequence[int],
        *,
        text: str,
        method: str,
        alpha: float,
        sink_frames: int,
        scale: float | None,
        **_: object,
    ) -> Problem:
        """The problem of `q` [B, N, S, D]; keywords as ``rainfusion_trt.rainfusion_attention``."""
        batch, heads, tokens, head_size = q.shape
        return cls(
            batch=batch,
            heads=heads,
            tokens=tokens,
            head_size=head_size,
            grid_t=grid[0],
            grid_h=grid[1],
            grid_w=grid[2],
            sink_frames=sink_frames,
            alpha=alpha,
            softmax_scale=scale or 0.0,
            text=_member(Text, text, "text"),
            method=_member(Method, method, "method"),
            dtype=_member(Dtype, str(q.dtype).removeprefix("torch."), "dtype"),
        )


class Strides(ctypes.Structure):
    """RainfusionStrides, in elements."""

    _fields_ = [
        ("batch", ctypes.c_int64),
        ("head", ctypes.c_int64),
        ("token", ctypes.c_int64),
    ]

    @classmethod
    def of(cls, x: Tensor) -> Strides:
        """Strides of a tensor [B, N, S, D] whose last dimension is contiguous."""
        return cls(*x.stride()[:3])


class Tensors(ctypes.Structure):
    """RainfusionTensors: device pointers and strides."""

    _fields_ = [
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("q_strides", Strides),
        ("k_strides", Strides),
        ("v_strides", Strides),
        ("out_strides", Strides),
        ("sparsity", ctypes.c_void_p),
        ("kv_len", ctypes.c_void_p),
        ("lse", ctypes.c_void_p),
    ]

    @classmethod
    def of(
        cls,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor | None,
        *,
        sparsity: Tensor,
        kv_len: Tensor | None = None,
        lse: Tensor | None = None,
    ) -> Tensors:
        """Addresses of CUDA tensors, which must outlive the launch; classify needs no `out`."""
        return cls(
            q=q.data_ptr(),
            k=k.data_ptr(),
            v=v.data_ptr(),
            out=_address(out),
            q_strides=Strides.of(q),
            k_strides=Strides.of(k),
            v_strides=Strides.of(v),
            out_strides=Strides.of(out if out is not None else q),
            sparsity=sparsity.data_ptr(),
            kv_len=_address(kv_len),
            lse=_address(lse),
        )


class Plan(ctypes.Structure):
    """RainfusionPlan: device pointers, each of which may be None."""

    _fields_ = [
        ("kind", ctypes.c_void_p),
        ("recall_temporal", ctypes.c_void_p),
        ("recall_spatial", ctypes.c_void_p),
        ("density", ctypes.c_void_p),
        ("block_mask", ctypes.c_void_p),
    ]

    @classmethod
    def of(cls, plan: HeadPlan, block_mask: Tensor | None = None) -> Plan:
        """Addresses of the tensors of a `rainfusion_trt.plan.HeadPlan`."""
        return cls(
            kind=plan.kind.data_ptr(),
            recall_temporal=plan.recall_temporal.data_ptr(),
            recall_spatial=plan.recall_spatial.data_ptr(),
            density=plan.density.data_ptr(),
            block_mask=_address(block_mask),
        )


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _member(kind: type[enum.IntEnum], name: str, what: str) -> int:
    try:
        return kind[name.upper()]
    except KeyError:
        choices = ", ".join(member.lower() for member in kind.__members__)
        raise InvalidInputError(f"{what} {name!r} is unknown: use one of {choices}") from None


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
    "rainfusion_build_info": (ctypes.c_char_p, []),
    "rainfusion_check": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_check_device": (
        ctypes.c_int,
        [ctypes.c_int32, ctypes.c_int32, ctypes.c_char_p, ctypes.c_size_t],
    ),
    "rainfusion_block_counts": (
        ctypes.c_int,
        [ctypes.POINTER(Problem), ctypes.POINTER(ctypes.c_int32), ctypes.POINTER(ctypes.c_int32)],
    ),
    "rainfusion_workspace_size": (
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
        try:
            self._library = ctypes.CDLL(str(self.path))
            for name, (restype, argtypes) in _SIGNATURES.items():
                function = getattr(self._library, name)
                function.restype, function.argtypes = restype, argtypes
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

    @property
    def abi_version(self) -> int:
        return self._library.rainfusion_abi_version()

    @property
    def build_info(self) -> str:
        """Version, source hash and architectures, e.g. ``0.1.0+3f2a9c1d5e0b7a42 sm_80 sm_90``."""
        return self._library.rainfusion_build_info().decode()

    def check(self, problem: Problem) -> None:
        """Raise InvalidInputError or UnsupportedError if no kernel can run `problem`."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        self._raise(self._library.rainfusion_check(problem, message, _MESSAGE_BYTES), message)

    def check_device(self, major: int, minor: int) -> None:
        """Raise UnsupportedError if the library has no kernels for this compute capability."""
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        status = self._library.rainfusion_check_device(major, minor, message, _MESSAGE_BYTES)
        self._raise(status, message)

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

    def block_mask_host(self, problem: Problem, kind: Kind, sparsity: float) -> np.ndarray:
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
        The library; by default what `rainfusion_trt.build_plugin.find_library` finds.

    Raises
    ------
    LibraryNotFoundError
        There is none, or it does not fit this package.
    """
    return _load(Path(path).resolve() if path is not None else find_library())
