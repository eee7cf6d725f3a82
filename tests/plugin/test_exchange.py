"""The exchange of several GPUs, which the host plays here: the library's copies and lists of what
goes to whom, put through P times, against slices of the whole tensor in NumPy."""

from __future__ import annotations

import numpy as np
import pytest

from rainfusion_trt.errors import InvalidInputError, ParallelError, UnsupportedError
from rainfusion_trt.operator import native
from rainfusion_trt.operator.native_parallel import Direction, ParallelCalls, Share

GRID = (3, 5, 7)  # 105 tokens, which neither 2 nor 4 divides
VIDEO = 105


@pytest.fixture(scope="module")
def library(plugin_library) -> native.NativeLibrary:
    return native.load_library(plugin_library)


@pytest.fixture(scope="module")
def calls(library) -> ParallelCalls:
    return ParallelCalls(library)


def local_problem(tokens: int, *, heads: int, text: str, batch: int = 1, **more) -> native.Problem:
    grid = dict(zip(("grid_t", "grid_h", "grid_w"), GRID, strict=True))
    sizes = {"batch": batch, "heads": heads, "tokens": tokens, "head_size": 64, **grid}
    return native.Problem(
        **{"alpha": 0.9, "sink_frames": 1, **sizes, "text": native.Text[text.upper()], **more}
    )


class Gpus:
    """P GPUs with a tensor [B, N, S, D] in parts, by `numpy.array_split`."""

    def __init__(self, calls, parts: int, heads: int, text: str, text_tokens: int, batch: int):
        self.calls = calls
        self.parts = range(parts)
        self.text, self.text_tokens = text, text_tokens
        self.tokens = np.array_split(np.arange(VIDEO), parts)
        self.heads = np.array_split(np.arange(heads), parts)
        self.shares = [Share(parts, rank) for rank in self.parts]
        self.problems = [
            local_problem(len(own) + text_tokens, heads=heads, text=text, batch=batch)
            for own in self.tokens
        ]
        whole = np.arange(batch * heads * (VIDEO + text_tokens) * 64, dtype=np.uint16)
        self.whole = whole.reshape(batch, heads, VIDEO + text_tokens, 64)

    def rows(self, rank: int) -> np.ndarray:
        """Which tokens of the whole sequence a GPU has, in its order."""
        text = np.arange(self.text_tokens)
        if self.text == "first":
            return np.concatenate([text, self.text_tokens + self.tokens[rank]])
        return np.concatenate([self.tokens[rank], VIDEO + text])

    def local(self, rank: int) -> np.ndarray:
        return np.ascontiguousarray(self.whole[:, :, self.rows(rank)])

    def move(self, direction: Direction, sent: list, received: list) -> None:
        """What NCCL does: the n-th that one sends another is the n-th that this one receives."""
        lists = [
            self.calls.transfers(p, s, direction)
            for p, s in zip(self.problems, self.shares, strict=True)
        ]
        for rank in self.parts:
            for peer in self.parts:
                out = [t for t in lists[rank] if t.peer == peer]
                back = [t for t in lists[peer] if t.peer == rank]
                assert rank != peer or not out
                for a, b in zip(out, back, strict=True):
                    assert a.sent_bytes == b.received_bytes > 0
                    data = sent[rank].view(np.uint8)[a.sent_begin : a.sent_begin + a.sent_bytes]
                    target = received[peer].view(np.uint8)
                    target[b.received_begin : b.received_begin + b.received_bytes] = data


CASES = {
    "even": (2, 4, "none", 0, 1),
    "uneven": (4, 6, "none", 0, 1),
    "a head each": (4, 4, "last", 9, 1),
    "text first, batch": (3, 5, "first", 11, 2),
    "text last, batch": (4, 5, "last", 3, 2),
    "alone": (1, 3, "last", 4, 2),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tokens_become_heads_and_heads_tokens(calls, case):
    gpus = Gpus(calls, *case)
    sent, wholes, arrived = [], [], []
    for rank in gpus.parts:
        problem, share = gpus.problems[rank], gpus.shares[rank]
        sizes = calls.exchange_bytes(problem, share)
        tensor = gpus.local(rank)
        assert sizes.arrived == tensor.nbytes
        sent.append(np.zeros(tensor.size, np.uint16))
        wholes.append(np.zeros(sizes.whole // 2, np.uint16))
        arrived.append(np.zeros(sizes.arrived // 2, np.uint16))
        calls.pack_host(
            problem, share, tensor.ctypes.data, sent[rank].ctypes.data, wholes[rank].ctypes.data
        )
    gpus.move(Direction.TOKENS_TO_HEADS, sent, wholes)
    for rank in gpus.parts:  # [tokens, batch, own heads, 64]
        expected = gpus.whole[:, gpus.heads[rank]].transpose(2, 0, 1, 3)
        np.testing.assert_array_equal(wholes[rank].reshape(expected.shape), expected)

    gpus.move(Direction.HEADS_TO_TOKENS, wholes, arrived)
    for rank in gpus.parts:
        result = np.zeros_like(gpus.local(rank))
        addresses = (x.ctypes.data for x in (wholes[rank], arrived[rank], result))
        calls.unpack_host(gpus.problems[rank], gpus.shares[rank], *addresses)
        np.testing.assert_array_equal(result, gpus.local(rank))


def test_what_a_gpu_attends_to(calls):
    mine = calls.shared_problem(local_problem(26 + 5, heads=6, text="last"), Share(4, 1))
    assert (mine.heads, mine.tokens, mine.grid_t) == (2, 110, 3)
    alone = local_problem(VIDEO, heads=6, text="none")
    same = calls.shared_problem(alone, Share(1, 0))
    assert bytes(same) == bytes(alone)


@pytest.mark.parametrize(
    ("tokens", "heads", "share", "words"),
    [
        (27, 3, Share(4, 0), "3 heads are fewer than the 4 GPUs .* use from 1 to 3 GPUs"),
        (26, 6, Share(4, 0), "tokens = 26 on GPU 0 of 4, whose part of the 105 .* is 27"),
        (28, 6, Share(4, 0), "tokens = 28 on GPU 0 of 4"),
        (27, 6, Share(4, 4), "rank = 4 of parts = 4 is none"),
        (1, 200, Share(106, 0), "105 video tokens are fewer than the 106 GPUs"),
    ],
)
def test_what_cannot_be_shared(calls, tokens, heads, share, words):
    with pytest.raises(InvalidInputError, match=words):
        calls.shared_problem(local_problem(tokens, heads=heads, text="none"), share)


def test_kernels_refuse_a_head_size_of_several_gpus_too(calls):
    with pytest.raises(UnsupportedError, match="head_size = 80"):
        problem = local_problem(53, heads=6, text="none", head_size=80)
        calls.shared_problem(problem, Share(2, 0))


@pytest.mark.parametrize("method", native.Method)
@pytest.mark.parametrize("text", ["none", "last"])
def test_a_bound_is_enough_for_every_gpu(calls, library, method, text):
    """Also of clips that are longer the more GPUs there are."""
    grid, heads, text_tokens = (9, 12, 20), 7, 33 if text == "last" else 0
    most = 540 + text_tokens  # tokens of a GPU
    largest = local_problem(most, heads=heads, text=text, method=method)
    largest.grid_t, largest.grid_h, largest.grid_w = grid
    bound = calls.workspace_bound(largest)
    needed = []
    for parts in range(1, heads + 1):
        for frames in range(2, grid[0] + 1):
            for rank in {0, parts - 1}:
                video = frames * 240
                own = len(np.array_split(np.arange(video), parts)[rank])
                if own + text_tokens > most:
                    continue
                local = local_problem(own + text_tokens, heads=heads, text=text, method=method)
                local.grid_t, local.grid_h, local.grid_w = frames, *grid[1:]
                needed.append(calls.workspace_size(local, Share(parts, rank)))
    assert max(needed) <= bound
    assert bound < 2 * max(needed)  # and no more than it must
    alone = local_problem(most, heads=heads, text=text, method=method)
    alone.grid_t, alone.grid_h, alone.grid_w = 2, *grid[1:]
    alone.tokens = 480 + text_tokens
    share = Share(1, 0)
    assert calls.workspace_size(alone, share) == library.workspace_size(alone)


def test_without_nccl_the_error_names_the_package(calls, tmp_path):
    with pytest.raises(ParallelError, match="nothing.so.* pip install nvidia-nccl-cu13"):
        calls.new_id(str(tmp_path / "nothing.so"))
    other = native.load_library().path
    with pytest.raises(ParallelError, match="it has no function ncclGetVersion.*pip install"):
        calls.open(0, bytes(128), Share(2, 0), str(other))


def test_communicators_that_are_not_there(calls):
    for call in (calls.check, calls.close):
        with pytest.raises(InvalidInputError, match="device 0 has no communicator"):
            call(0)
    with pytest.raises(InvalidInputError, match="rank = 2 of parts = 2: a communicator has two"):
        calls.open(0, bytes(128), Share(2, 2))
