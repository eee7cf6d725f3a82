"""Structs and signatures of plugins/include/rainfusion/parallel.h for ctypes, and its calls."""

from __future__ import annotations

import ctypes
import enum
from typing import TYPE_CHECKING

from rainfusion_trt.operator.native_types import Problem, Tensors

if TYPE_CHECKING:
    from rainfusion_trt.operator.native import NativeLibrary

ID_BYTES = 128


class Share(ctypes.Structure):
    """RainfusionShare: which GPU this is, of how many."""

    _fields_ = [("parts", ctypes.c_int32), ("rank", ctypes.c_int32)]


class Rows(ctypes.Structure):
    """RainfusionRows: a tensor [outer, tokens, row_bytes] in bytes."""

    _fields_ = [
        ("outer", ctypes.c_int64),
        ("tokens", ctypes.c_int64),
        ("row_bytes", ctypes.c_int64),
    ]


class ExchangeBytes(ctypes.Structure):
    """RainfusionExchangeBytes: sizes of the buffers of one tensor."""

    _fields_ = [("whole", ctypes.c_int64), ("arrived", ctypes.c_int64)]


class Transfer(ctypes.Structure):
    """RainfusionTransfer: what goes to another GPU and what comes from it."""

    _fields_ = [
        ("peer", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("sent_begin", ctypes.c_int64),
        ("sent_bytes", ctypes.c_int64),
        ("received_begin", ctypes.c_int64),
        ("received_bytes", ctypes.c_int64),
    ]


class Direction(enum.IntEnum):
    """RainfusionDirection: before attention, and behind it."""

    TOKENS_TO_HEADS = 0
    HEADS_TO_TOKENS = 1


_PROBLEM, _SHARE, _SIZE = (
    ctypes.POINTER(Problem),
    ctypes.POINTER(Share),
    ctypes.POINTER(ctypes.c_size_t),
)
_VOID, _INT = ctypes.c_void_p, ctypes.c_int32
_ROWS = [ctypes.POINTER(Rows), ctypes.c_int64, _VOID, _VOID, _VOID]
_ARGUMENTS: dict[str, list] = {
    "communicator_id": [ctypes.c_char_p, ctypes.c_char_p],
    "open_communicator": [ctypes.c_char_p, _INT, ctypes.c_char_p, _SHARE],
    "check_communicator": [_INT],
    "close_communicator": [_INT, _INT],
    "current_share": [_SHARE],
    "shared_problem": [_PROBLEM, _SHARE, _PROBLEM, ctypes.c_char_p, ctypes.c_size_t],
    "shared_workspace_size": [_PROBLEM, _SHARE, _SIZE],
    "shared_workspace_bound": [_PROBLEM, _SIZE],
    "shared_attention": [_PROBLEM, ctypes.POINTER(Tensors), _VOID, ctypes.c_size_t, _VOID],
    "split_tokens": _ROWS,
    "gather_tokens": _ROWS,
    "exchange_bytes": [_PROBLEM, _SHARE, ctypes.POINTER(ExchangeBytes)],
    "transfers": [_PROBLEM, _SHARE, _INT, ctypes.POINTER(Transfer), ctypes.POINTER(_INT)],
    "pack_host": [_PROBLEM, _SHARE, _VOID, _VOID, _VOID],
    "unpack_host": [_PROBLEM, _SHARE, _VOID, _VOID, _VOID],
}
SIGNATURES = {f"rainfusion_{name}": (ctypes.c_int, types) for name, types in _ARGUMENTS.items()}
"""Result and argument types by function."""


class ParallelCalls:
    """The calls of parallel.h, with a library that is loaded.

    Errors are those of the statuses, as of `NativeLibrary`; `ParallelError` is NCCL's.
    """

    def __init__(self, library: NativeLibrary) -> None:
        self._call = library.call

    def new_id(self, nccl: str | None = None) -> bytes:
        """A new communicator's id; `nccl` is a path of libnccl.so.2."""
        made = ctypes.create_string_buffer(ID_BYTES)
        self._call("rainfusion_communicator_id", _path(nccl), made)
        return made.raw

    def open(self, device: int, made: bytes, share: Share, nccl: str | None = None) -> None:
        """Make the communicator of a device; returns when all processes have called it."""
        self._call("rainfusion_open_communicator", _path(nccl), device, made, share)

    def check(self, device: int) -> None:
        """Raise ParallelError once NCCL has noticed that the communicator is broken."""
        self._call("rainfusion_check_communicator", device)

    def close(self, device: int, *, abort: bool = False) -> None:
        """End a communicator; `abort` ends what waits for another GPU too."""
        self._call("rainfusion_close_communicator", device, int(abort))

    def shared_problem(self, local: Problem, share: Share) -> Problem:
        """What a GPU attends to: its heads, all tokens."""
        mine = Problem()
        self._call("rainfusion_shared_problem", local, share, mine, None, 0)
        return mine

    def workspace_size(self, local: Problem, share: Share) -> int:
        """Bytes that `attention` needs."""
        size = ctypes.c_size_t()
        self._call("rainfusion_shared_workspace_size", local, share, size)
        return size.value

    def workspace_bound(self, largest: Problem) -> int:
        """Bytes that are enough for every shared problem whose sizes are at most these."""
        size = ctypes.c_size_t()
        self._call("rainfusion_shared_workspace_bound", largest, size)
        return size.value

    def attention(
        self, local: Problem, tensors: Tensors, workspace: int, workspace_bytes: int, stream: int
    ) -> None:
        """Enqueue exchange, attention, exchange on `stream` (a cudaStream_t as an integer)."""
        name = "rainfusion_shared_attention"
        self._call(name, local, tensors, workspace, workspace_bytes, stream)

    def split_tokens(
        self, rows: Rows, part_tokens: int, whole: int, part: int, stream: int
    ) -> None:
        """Enqueue a copy of this GPU's part of the tokens; tensors are device addresses."""
        self._call("rainfusion_split_tokens", rows, part_tokens, whole, part, stream)

    def gather_tokens(
        self, rows: Rows, part_tokens: int, part: int, whole: int, stream: int
    ) -> None:
        """Enqueue the inverse, on all GPUs."""
        self._call("rainfusion_gather_tokens", rows, part_tokens, part, whole, stream)

    def exchange_bytes(self, local: Problem, share: Share) -> ExchangeBytes:
        """Sizes of the buffers of one tensor."""
        sizes = ExchangeBytes()
        self._call("rainfusion_exchange_bytes", local, share, sizes)
        return sizes

    def transfers(self, local: Problem, share: Share, direction: Direction) -> list[Transfer]:
        """What goes to other GPUs and comes from them."""
        found = (Transfer * max(1, 2 * (share.parts - 1)))()
        count = ctypes.c_int32()
        self._call("rainfusion_transfers", local, share, direction, found, count)
        return list(found[: count.value])

    def pack_host(self, local: Problem, share: Share, tensor: int, sent: int, whole: int) -> None:
        """The copy before an exchange, on the host; tensors are host addresses."""
        self._call("rainfusion_pack_host", local, share, tensor, sent, whole)

    def unpack_host(
        self, local: Problem, share: Share, whole: int, arrived: int, tensor: int
    ) -> None:
        """The copy behind an exchange, on the host."""
        self._call("rainfusion_unpack_host", local, share, whole, arrived, tensor)


def _path(path: str | None) -> bytes | None:
    return None if path is None else path.encode()
