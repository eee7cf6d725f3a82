"""The torch operator on the CPU: its checks, its registration and its fake."""

from __future__ import annotations

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import reference

GRID = (4, 8, 8)


@pytest.fixture
def qkv():
    return torch.randn(3, 2, 2, 300, 16).unbind(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"text": "none"}, "44 more than"),
        ({"grid": (5, 8, 8)}, "fewer than"),
        ({"grid": (4, 8)}, "three positive sizes"),
        ({"text": "middle"}, "middle"),
        ({"method": "flash"}, "flash"),
        ({"sparsity": 1.0}, r"sparsity=1\.0"),
        ({"sparsity": -0.1}, r"sparsity=-0\.1"),
        ({"sparsity": torch.tensor([1.5])}, r"sparsity=1\.5"),
        ({"sparsity": torch.tensor(0.5)}, r"float32 \[1\]"),
        ({"alpha": 1.5}, r"alpha=1\.5"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"sink_frames": -1}, "sink_frames=-1"),
        ({"last_sink_frames": -1}, "last_sink_frames=-1"),
        ({"kv_len": torch.tensor([300, 300])}, "int32"),
        ({"kv_len": torch.tensor([300], dtype=torch.int32)}, r"\[2\]"),
    ],
)
def test_bad_arguments_are_named(qkv, arguments, words):
    arguments = {"grid": GRID, "text": "first", **arguments}
    with pytest.raises(InvalidInputError, match=words):
        rainfusion_trt.rainfusion_attention(*qkv, **arguments)


def test_tensors_must_agree(qkv):
    q, k, v = qkv
    with pytest.raises(InvalidInputError, match="must agree"):
        rainfusion_trt.rainfusion_attention(q, k[:, :1], v, GRID, text="first")
    with pytest.raises(InvalidInputError, match="must agree"):
        rainfusion_trt.rainfusion_attention(q, k, v.double(), GRID, text="first")
    with pytest.raises(InvalidInputError, match=r"\[B, N, S, D\]"):
        rainfusion_trt.rainfusion_attention(q[0], k[0], v[0], GRID, text="first")


def test_grid_may_be_a_tensor_of_that_shape(qkv):
    settings = {"text": "last", "method": "rainfusion"}
    by_shape = rainfusion_trt.rainfusion_attention(*qkv, torch.empty(GRID), **settings)
    by_size = rainfusion_trt.rainfusion_attention(*qkv, GRID, **settings)
    assert torch.equal(by_shape, by_size)


def test_operator_is_well_registered(qkv):
    grid, sparsity = qkv[0].new_empty(GRID), torch.tensor([0.5])
    arguments = (*qkv, grid, sparsity, None, "first", "rainfusion", 0.9, 1, 0.0, "16bit", 1, [])
    torch.library.opcheck(
        torch.ops.rainfusion.attention.default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


def test_classify_agrees_with_the_reference(qkv):
    q, k, _ = qkv
    arguments = {"text": "first", "sparsity": 0.8, "method": "rainfusion"}
    plan = rainfusion_trt.classify_heads(q, k, GRID, **arguments)
    wanted = reference.classify_heads(q, k, GRID, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(plan, wanted, strict=True))
