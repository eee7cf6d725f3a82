"""What the library says of problems in 8 bits, before a GPU is asked."""

from __future__ import annotations

import pytest

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator import native
from rainfusion_trt.operator.geometry import block_shape


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


def problem(head_size=128, **attributes):
    values = {
        "method": native.Method.PIECEWISE,
        "precision": native.Precision.BITS_8,
        "dtype": native.Dtype.BFLOAT16,
        **attributes,
    }
    sizes = {"tokens": 8 * 12 * 12, "grid_t": 8, "grid_h": 12, "grid_w": 12}
    return native.Problem(batch=1, heads=2, head_size=head_size, alpha=0.9, **sizes, **values)


@pytest.mark.parametrize(
    ("attributes", "error", "words"),
    [
        ({"head_size": 96}, UnsupportedError, "head_size = 96 has no 8-bit kernel; 64 and 128 do"),
        ({"method": native.Method.RAINFUSION}, UnsupportedError, "method rainfusion has no 8-bit"),
        ({"block_k": 97}, UnsupportedError, "blocks of 192 x 97 .*use at most 192 x 96"),
        ({"block_q": 224}, UnsupportedError, "blocks of 224 x 96 have no 8-bit kernel"),
        ({"precision": 2}, InvalidInputError, "precision = 2 is not a RainfusionPrecision"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named_with_its_remedy(library, attributes, error, words):
    with pytest.raises(error, match=words) as raised:
        library.check(problem(**attributes))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("head_size", [64, 128])
def test_blocks_are_those_of_the_reference(library, head_size):
    shape = block_shape(head_size, "8bit")
    clip = problem(head_size, method=native.Method.RAINFUSION2, sink_frames=1)
    library.check(clip)
    counts = tuple(-(-clip.tokens // size) for size in shape)
    assert library.block_counts(clip) == counts


def test_only_hopper_has_kernels(library):
    """Where a build has them at all; 16 bits are everywhere."""
    for capability in ((8, 0), (8, 9), (10, 0), (12, 0)):
        with pytest.raises(UnsupportedError, match="precision 8bit has no kernel in this build"):
            library.check_precision(native.Precision.BITS_8, *capability)
        library.check_precision(native.Precision.BITS_16, *capability)
