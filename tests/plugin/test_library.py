"""The C interface through its ctypes binding, and what the library exports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import yaml

from rainfusion_trt import __version__
from rainfusion_trt.errors import InvalidInputError, LibraryNotFoundError, UnsupportedError
from rainfusion_trt.operator import native, native_types, reference
from rainfusion_trt.operator.geometry import METHODS, Kind, TokenLayout, band_of, block_shape
from rainfusion_trt.operator.settings import LATER_ATTRIBUTES, NODE_ATTRIBUTES, PRECISIONS
from rainfusion_trt.plugin.build import (
    STATIC_LIBRARY_NAMES,
    find_library,
    source_directory,
)


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


def problem(**changes: object) -> native.Problem:
    values = {
        "batch": 1,
        "heads": 2,
        "tokens": 5 * 9 * 11 + 37,
        "head_size": 64,
        "grid_t": 5,
        "grid_h": 9,
        "grid_w": 11,
        "sink_frames": 1,
        "alpha": 0.9,
        "text": native.Text.LAST,
        **changes,
    }
    return native.Problem(**values)


def exported_symbols(path) -> list[str]:
    output = subprocess.run(
        ["nm", "-D", "--defined-only", path], capture_output=True, text=True, check=True
    ).stdout
    return [line.split()[-1] for line in output.splitlines()]


def test_header_and_binding_agree(library):
    assert library.abi_version == native.ABI_VERSION
    header = source_directory() / "plugins" / "include" / "rainfusion" / "rainfusion.h"
    assert f"#define RAINFUSION_ABI_VERSION {native.ABI_VERSION}\n" in header.read_text()


def test_methods_of_library_binding_and_operator_agree(library):
    assert library.methods == [name.lower() for name in native.Method.__members__]
    assert library.methods == list(METHODS)


def test_build_info_names_version_and_sources(library, plugin_library):
    version, rest = library.build_info.split("+")
    assert version == __version__
    assert re.fullmatch(r"[0-9a-f]{16}( (sm|compute)_\d+[af]?)+", rest)
    stamp = plugin_library.with_name(plugin_library.name + ".json")
    if not stamp.is_file():
        pytest.skip("the library was not built by build_plugin")
    assert rest.split()[0] == json.loads(stamp.read_text())["sources"]  # CMake's, Python's


def test_exports_nothing_but_its_interfaces(plugin_library):
    symbols = exported_symbols(plugin_library)
    calls = [name for name in symbols if name.startswith("rainfusion_")]
    assert set(symbols) - set(calls) == {"getCreators", "setLoggerFinder"}
    folder = source_directory() / "plugins" / "include" / "rainfusion"
    headers = "".join((folder / name).read_text() for name in ("rainfusion.h", "parallel.h"))
    declared = headers.count("RAINFUSION_API ")
    assert len(calls) == declared - headers.count("#define RAINFUSION_API ")
    for name in STATIC_LIBRARY_NAMES:
        assert exported_symbols(plugin_library.with_name(name)) == []


def test_links_neither_tensorrt_nor_a_shared_cuda_runtime(plugin_library):
    output = subprocess.run(
        ["readelf", "-d", plugin_library], capture_output=True, text=True, check=True
    ).stdout
    needed = [line for line in output.splitlines() if "NEEDED" in line]
    assert needed
    assert not [line for line in needed if "nvinfer" in line or "cuda" in line]


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"head_size": 80}, UnsupportedError, r"head_size = 80 .* 64, 96 and 128"),
        ({"tokens": 494}, InvalidInputError, r"tokens = 494 is less than .* 495"),
        ({"text": native.Text.NONE}, InvalidInputError, r'37 more than .* text is "none"'),
        ({"alpha": 1.5}, InvalidInputError, r"alpha = 1\.5"),
        ({"sink_frames": -1}, InvalidInputError, r"^sink_frames = -1"),
        ({"last_sink_frames": -1}, InvalidInputError, r"^last_sink_frames = -1"),
        (
            {"exact_frames": ((3, 3),)},
            InvalidInputError,
            r"^exact_frames has \[3, 3\), .* their",
        ),
        ({"exact_frames": ((2, 4), (3, 5))}, InvalidInputError, r"^exact_frames has \[3, 5\), "),
        ({"exact_frames": ((2, 3), (0, 0), (4, 5))}, InvalidInputError, r"has \[4, 5\), .* behind"),
        ({"exact_frames": ((-1, 2),)}, InvalidInputError, r"^exact_frames has \[-1, 2\), "),
        ({"exact_frames": ((4, 6),)}, InvalidInputError, r"has \[4, 6\), and the clip 5 latent"),
        (
            {"exact_frames": ((2, 3),), "method": native.Method.RAINFUSION_PLUS},
            UnsupportedError,
            r"method rainfusion_plus has no exact_frames.*use piecewise",
        ),
        ({"method": 9}, InvalidInputError, r"method = 9"),
        ({"dtype": 7}, UnsupportedError, r"dtype = 7"),
        ({"grid_w": 0}, InvalidInputError, r"\(5, 9, 0\)"),
        ({"block_q": 40}, UnsupportedError, r"block_q = 40 .* multiple of 32 .* default, 192"),
        ({"block_q": 32}, UnsupportedError, r"block_q = 32 .* at least 64"),
        ({"block_q": -64}, UnsupportedError, r"block_q = -64 has no kernel"),
        ({"block_k": -1}, InvalidInputError, r"block_k = -1 .* default, 128 at head size 64"),
        ({"block_k": 1, "grid_t": 200, "tokens": 19837}, UnsupportedError, r"key blocks of 1;"),
    ],
)
def test_check_names_value_and_remedy(library, changes, error, words):
    library.check(problem())
    if "exact_frames" in changes:
        frames = native_types.exact_frames(changes["exact_frames"])
        changes = {"method": native.Method.PIECEWISE, **changes, "exact_frames": frames}
    with pytest.raises(error, match=words):
        library.check(problem(**changes))
    with pytest.raises(error, match=words):  # by which PyTorch's calls learn of it
        library.workspace_size(problem(**changes))


# For other lists of targets than this library's: plugins/conformance/target_checks.cc.
def test_device_is_checked_against_what_was_built(library):
    targets = re.findall(r" (sm|compute)_(\d+)([af]?)", library.build_info)
    for kind, digits, suffix in targets:
        number = int(digits)
        library.check_device(*divmod(number, 10))
        if kind == "compute" and not suffix:
            library.check_device(number // 10 + 1, 0)
    newest = max(int(digits) // 10 for _, digits, _ in targets)
    if all(kind == "sm" for kind, *_ in targets):
        with pytest.raises(UnsupportedError, match=rf"compute capability {newest + 1}\.0 .* sm_"):
            library.check_device(newest + 1, 0)


def test_device_without_code_names_what_was_built_and_the_remedy(library):
    built = library.build_info.split(" ", 1)[1]
    refused = []
    for capability in (80, 86, 89, 90, 100, 103, 120):
        try:
            library.check_device(*divmod(capability, 10))
        except UnsupportedError as error:
            refused.append(capability)
            assert f"compute capability {capability // 10}.{capability % 10} " in str(error)
            assert f"holds code for {built};" in str(error)
            remedy = f"RAINFUSION_CUDA_ARCHITECTURES={capability} rainfusion-trt build-plugin"
            assert remedy in str(error)
    if built == "sm_80":
        assert refused == [90, 100, 103, 120]


def test_device_that_is_too_old_for_the_kernels(library):
    with pytest.raises(UnsupportedError, match=r"7\.5 has no kernel; .* 8\.0 or newer"):
        library.check_device(7, 5)


def test_workspace_is_at_most_half_of_k_and_v(library):
    # HunyuanVideo, 720p x 129 frames: 119,056 tokens, 24 heads of 128.
    size = {"heads": 24, "head_size": 128, "grid_t": 33, "grid_h": 45, "grid_w": 80}
    large = problem(tokens=33 * 45 * 80 + 256, dtype=native.Dtype.BFLOAT16, **size)
    k_and_v = 2 * large.heads * large.tokens * large.head_size * 2
    for method in native.Method:
        large.method = method
        assert 0 < library.workspace_size(large) <= k_and_v / 2


@pytest.mark.parametrize(
    ("head_size", "counts"),  # of 495 video tokens and 37 text tokens
    [(64, (3 + 1, 4 + 1)), (96, (3 + 1, 6 + 1)), (128, (3 + 1, 7 + 1))],
)
def test_block_mask_of_a_dense_head(library, head_size, counts):
    clip = problem(head_size=head_size)
    mask = library.block_mask_host(clip, Kind.DENSE, 0.5)
    assert mask.shape == library.block_counts(clip) == counts
    assert mask.all()


@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_text_of_no_tokens_has_no_place(library, head_size):
    """As in a graph whose conditions may be none: blocks, masks and workspace are those without."""
    for method in native.Method:
        clips = [
            problem(tokens=495, head_size=head_size, method=method, text=place)
            for place in native.Text
        ]
        assert len({(library.block_counts(c), library.workspace_size(c)) for c in clips}) == 1
        if method is native.Method.RAINFUSION:
            for kind in (Kind.SPATIAL, Kind.TEMPORAL):
                without, *others = (library.block_mask_host(clip, kind, 0.8) for clip in clips)
                assert not without.all()
                assert all(np.array_equal(without, mask) for mask in others)


@pytest.mark.parametrize("kind", [Kind.SPATIAL, Kind.TEMPORAL])
@pytest.mark.parametrize("head_size", [64, 96, 128])
def test_block_mask_keeps_sinks_and_shared_tokens(library, head_size, kind):
    clip = problem(grid_t=16, grid_h=16, grid_w=16, tokens=4096 + 200, head_size=head_size)
    mask = library.block_mask_host(clip, kind, 0.8)
    layout = TokenLayout((16, 16, 16), 4096 + 200, "last")
    shape = block_shape(head_size)
    rows, columns = (
        np.array([(block.begin, block.end) for block in layout.blocks(size)]) for size in shape
    )
    # One frame of 256 tokens is a sink, and so are the 200 text tokens.
    assert mask[(rows[:, 0] < 256) | (rows[:, 0] >= 4096)].all()
    assert mask[:, (columns[:, 0] < 256) | (columns[:, 0] >= 4096)].all()
    shared = (rows[:, :1] < columns[:, 1]) & (columns[:, 0] < rows[:, 1:])
    assert mask[shared].all()
    wanted = reference.block_mask(layout, kind, band_of(0.8), shape).numpy()
    np.testing.assert_array_equal(mask, wanted)
    assert not mask.all()


def test_attention_refuses_null_pointers_before_any_launch(library):
    with pytest.raises(InvalidInputError, match="q is a null pointer"):
        library.attention(problem(), native.Tensors(), None, 0, 0, 0)


def test_head_size_alone(library):
    for head_size in (64, 96, 128):
        library.check_head_size(head_size)
    with pytest.raises(UnsupportedError, match=r"head_size = 80 .* 64, 96 and 128"):
        library.check_head_size(80)


def test_plugin_config_and_binding_agree():
    folder = source_directory() / "plugins" / "tensorrt"
    config = yaml.safe_load((folder / "RainFusionAttention_PluginConfig.yaml").read_text())
    (version,) = config["versions"].values()
    assert version["attributes"] == [*NODE_ATTRIBUTES, "parallel", *LATER_ATTRIBUTES]
    options = version["attribute_options"]
    assert options["text"] == [name.lower() for name in native.Text.__members__]
    assert options["method"] == [name.lower() for name in native.Method.__members__]
    assert options["precision"] == list(PRECISIONS)


def test_library_that_is_missing_or_foreign(monkeypatch, tmp_path):
    monkeypatch.setenv("RAINFUSION_TRT_LIBRARY", str(tmp_path / "nothing.so"))
    with pytest.raises(LibraryNotFoundError, match="RAINFUSION_TRT_LIBRARY names .*nothing.so"):
        find_library()
    foreign = tmp_path / "foreign.so"
    foreign.write_bytes(b"not a library")
    with pytest.raises(LibraryNotFoundError, match="rainfusion-trt build-plugin"):
        native.load_library(foreign)


def test_missing_build_names_the_command(monkeypatch, tmp_path):
    monkeypatch.delenv("RAINFUSION_TRT_LIBRARY", raising=False)
    monkeypatch.setattr("rainfusion_trt.places.PACKAGE", tmp_path)
    monkeypatch.setattr("rainfusion_trt.places.CHECKOUT", tmp_path)
    with pytest.raises(LibraryNotFoundError, match="`rainfusion-trt build-plugin`"):
        find_library()


def test_a_library_of_another_version_is_named_by_it(tmp_path):
    """Also where it lacks functions of this one."""
    source, path = tmp_path / "old.cc", tmp_path / "librainfusion_trt.so"
    source.write_text('extern "C" int rainfusion_abi_version() { return 3; }\n')
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    subprocess.run([compiler, "-shared", "-fPIC", source, "-o", path], check=True)
    with pytest.raises(LibraryNotFoundError, match=rf"ABI version 3, .* {native.ABI_VERSION}; re"):
        native.NativeLibrary(path)
