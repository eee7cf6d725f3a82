"""What GPU tests ask of the card that they run on."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.operator.native import Precision, load_library


def skip_without_kernel(precision: str) -> None:
    """Skip the test where the library has no kernel of a precision for this GPU.

    Which GPUs have one is tested without a GPU: tests/plugin/test_precision.py.
    """
    if precision != "8bit":
        return
    try:
        load_library().check_precision(Precision.BITS_8, *torch.cuda.get_device_capability())
    except UnsupportedError as error:
        pytest.skip(str(error))
