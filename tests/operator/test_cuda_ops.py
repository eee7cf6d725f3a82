"""The operator's CUDA face, up to its launches."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.operator import cuda_ops


def rows(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float16).reshape(shape)


@pytest.mark.parametrize(
    "x",
    [
        rows(2, 3, 10, 64),
        rows(2, 10, 3, 64).transpose(1, 2),
        rows(2, 3, 10, 128)[..., 64:],
        rows(1, 3, 10, 64).expand(1, 3, 10, 64),
    ],
    ids=["contiguous", "tokens before heads", "half of the row", "expanded by nothing"],
)
def test_rows_in_whole_chunks_are_read_where_they_lie(x):
    assert cuda_ops._aligned(x) is x


@pytest.mark.parametrize(
    "x",
    [
        rows(2, 3, 10, 65)[..., :64],
        rows(2, 3, 64, 10).transpose(2, 3),
        rows(1, 3, 10, 64).expand(2, 3, 10, 64),
        rows(2, 1, 10, 64).expand(2, 3, 10, 64),
    ],
    ids=["odd rows", "columns apart", "one batch element for two", "one head for three"],
)
def test_other_rows_are_copied(x):
    copy = cuda_ops._aligned(x)
    assert copy.is_contiguous()
    assert torch.equal(copy, x)
