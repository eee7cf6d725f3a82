"""Checks of a feed and their errors."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.runtime.base import Backend, TensorInfo, check_feed, torch_dtype


class Doubling(Backend):
    name = "doubling"
    device = torch.device("cpu")
    inputs = {"x": TensorInfo("x", torch.float16, (1, 4, None), (2, 4, None))}
    outputs = {"y": TensorInfo("y", torch.float16, (1, 4, None), (2, 4, None))}

    def run(self, feed):
        return {"y": 2 * feed["x"]}

    def describe(self):
        return self.name


@pytest.mark.parametrize("shape", [(1, 4, 1), (2, 4, 1000)])
def test_fitting_feed(shape):
    check_feed(Doubling(), {"x": torch.zeros(shape, dtype=torch.float16)})


@pytest.mark.parametrize(
    ("feed", "words"),
    [
        ({}, "missing x"),
        ({"x": torch.zeros(1, 4, 1).half(), "z": torch.zeros(1)}, "unknown z"),
        ({"x": torch.zeros(1, 4, 1)}, r"x is float32 \[1, 4, 1\].*takes float16 \[1..2, 4, 1..any"),
        ({"x": torch.zeros(3, 4, 1).half()}, r"x is float16 \[3, 4, 1\]"),
        ({"x": torch.zeros(1, 5, 1).half()}, r"x is float16 \[1, 5, 1\]"),
        ({"x": torch.zeros(4, 1).half()}, r"x is float16 \[4, 1\]"),
        ({"x": torch.zeros(1, 4, 8).half()[..., ::2]}, "not contiguous"),
        ({"x": torch.zeros(1, 4, 1, device="meta").half()}, "x is on meta"),
    ],
)
def test_feeds_that_do_not_fit(feed, words):
    with pytest.raises(InvalidInputError, match=words):
        check_feed(Doubling(), feed)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("tensor(float)", torch.float32),
        ("tensor(bfloat16)", torch.bfloat16),
        ("int64", torch.int64),
    ],
)
def test_dtype_names(name, dtype):
    assert torch_dtype(name) is dtype


def test_unknown_dtype_name():
    with pytest.raises(InvalidInputError, match="tensor"):
        torch_dtype("tensor(string)")
