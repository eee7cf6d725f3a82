"""What the library says of problems in 8 bits, before a GPU is asked."""

from __future__ import annotations

import re

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


def runs(library, capability):
    try:
        library.check_device(*capability)
    except UnsupportedError:
        return False
    return True


def test_gpus_that_multiply_e4m3_have_kernels(library):
    """Whatever the library was built for: if it runs there. 16 bits are everywhere."""
    for capability in ((8, 0), (8, 6)):
        with pytest.raises(UnsupportedError, match=r"8bit has no kernel for .* 8\.[06]; .* 16bit"):
            library.check_precision(native.Precision.BITS_8, *capability)
    for capability in ((8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)):
        if runs(library, capability):
            library.check_precision(native.Precision.BITS_8, *capability)
        else:
            with pytest.raises(UnsupportedError, match="cannot run this build: .* build-plugin"):
                library.check_precision(native.Precision.BITS_8, *capability)
        library.check_precision(native.Precision.BITS_16, *capability)


def test_a_library_that_runs_on_8_9_has_its_kernels(library):
    """Machine code of 8.0, as CI builds it, runs on 8.9 too: its 8-bit kernels are of 8.9."""
    if not re.search(r"sm_8[0-9]", library.build_info):
        pytest.skip(f"a library for other GPUs: {library.build_info}")
    library.check_precision(native.Precision.BITS_8, 8, 9)
    assert b"sm_89" in library.path.read_bytes()
