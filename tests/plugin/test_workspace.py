"""The workspace: how large it is, under which number, and what bounds it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rainfusion_trt.errors import InvalidInputError, KernelError, UnsupportedError
from rainfusion_trt.operator import native, native_types
from rainfusion_trt.plugin.build import source_directory

HEAD_SIZES = (64, 96, 128)
FRAME = ("grid_h", "grid_w")

# batch, heads, head size, grid, text tokens
CANONICAL = {
    "cogvideox-5b": (2, 48, 64, (13, 30, 45), 226, native.Text.FIRST),
    "hunyuanvideo-720p": (1, 24, 128, (33, 45, 80), 256, native.Text.LAST),
    "wan2.1-14b-720p": (1, 40, 128, (21, 45, 80), 0, native.Text.NONE),
    "opensoraplan-720p": (1, 24, 96, (24, 45, 80), 0, native.Text.NONE),
    "odd and tiny": (3, 1, 96, (3, 5, 7), 11, native.Text.LAST),
    "all sinks": (1, 2, 64, (2, 8, 8), 0, native.Text.NONE),
}

METHODS = ("RAINFUSION", "RAINFUSION_TWO_WAY", "RAINFUSION_PLUS", "RAINFUSION2", "PIECEWISE")

# By layout number: the bytes of each canonical problem, by method in the order of METHODS.
GOLDEN = {
    4: {
        "cogvideox-5b": (199089408, 23808, 199097088, 5932800, 9040384),
        "hunyuanvideo-720p": (708028160, 239360, 708495104, 28730880, 45571328),
        "wan2.1-14b-720p": (737383424, 103424, 737572608, 29315072, 46440192),
        "opensoraplan-720p": (381652480, 110080, 381861376, 13695488, 22091776),
        "odd and tiny": (43520, 2048, 43520, 7168, 1024),
        "all sinks": (1024, 1024, 1024, 1024, 1024),
    },
}

# The same of 8 bits, for methods and head sizes that have them.
EIGHT_BIT_METHODS = ("RAINFUSION_TWO_WAY", "RAINFUSION2", "PIECEWISE")
EIGHT_BIT_GOLDEN: dict[int, dict[str, tuple[int, ...]]] = {
    4: {
        "cogvideox-5b": (350391552, 356300544, 381664768),
        "hunyuanvideo-720p": (1142853376, 1167860480, 1189681408),
        "wan2.1-14b-720p": (1209027072, 1234724096, 1256953088),
        "all sinks": (65792, 65792, 65792),
    },
}

# How far the bound of a clip may be above its own size. For windows it is not as near: it takes
# them for as long as windows ever are, and all tokens for text that may be.
SLACK = {method: 1.2 if method == native.Method.PIECEWISE else 1.02 for method in native.Method}


@pytest.fixture(scope="module")
def library(plugin_library):
    return native.load_library(plugin_library)


def problem(
    batch: int,
    heads: int,
    head_size: int,
    grid: tuple[int, int, int],
    text_tokens: int,
    text: native.Text,
    **attributes: object,
) -> native.Problem:
    frames, height, width = grid
    values = {"alpha": 0.9, "sink_frames": 1, "dtype": native.Dtype.BFLOAT16, **attributes}
    return native.Problem(
        batch=batch,
        heads=heads,
        tokens=frames * height * width + text_tokens,
        head_size=head_size,
        grid_t=frames,
        grid_h=height,
        grid_w=width,
        text=text,
        **values,
    )


def test_bytes_change_only_with_the_layout(library):
    sizes = {
        name: tuple(
            library.workspace_size(problem(*clip, method=native.Method[method]))
            for method in METHODS
        )
        for name, clip in CANONICAL.items()
    }
    assert library.workspace_layout in GOLDEN, (
        f"workspace layout {library.workspace_layout} is new: write its sizes into GOLDEN: {sizes}"
    )
    assert sizes == GOLDEN[library.workspace_layout], (
        "the workspace has changed under the same layout number, so that engines which are built "
        "already would run with what they have: raise RAINFUSION_WORKSPACE_LAYOUT in rainfusion.h "
        f"and write the new sizes into GOLDEN: {sizes}"
    )


def test_bytes_of_8_bits_change_only_with_the_layout(library):
    sizes = {
        name: tuple(
            library.workspace_size(
                problem(*clip, method=native.Method[method], precision=native.Precision.BITS_8)
            )
            for method in EIGHT_BIT_METHODS
        )
        for name, clip in CANONICAL.items()
        if clip[2] != 96
    }
    assert sizes == EIGHT_BIT_GOLDEN[library.workspace_layout], f"as above: {sizes}"


def test_every_method_is_in_the_golden_sizes():
    missing = set(native.Method.__members__) - set(METHODS)
    assert not missing, f"add {missing} to METHODS, and their sizes to GOLDEN"


def test_header_names_the_layout_and_the_alignment_once(library):
    plugins = source_directory() / "plugins"
    header = (plugins / "include" / "rainfusion" / "rainfusion.h").read_text()
    assert f"#define RAINFUSION_WORKSPACE_LAYOUT {library.workspace_layout}\n" in header
    (alignment,) = re.findall(r"#define RAINFUSION_WORKSPACE_ALIGNMENT (\d+)\n", header)
    places = [*plugins.glob("kernels/*"), *plugins.glob("tensorrt/**/*")]
    sources = [path for path in places if path.suffix in {".h", ".cc"}]
    assert sources
    for path in sources:
        assert not re.search(rf"\b{alignment}\b", path.read_text()), path


@st.composite
def largest_problems(draw: st.DrawFn) -> native.Problem:
    """The largest sizes of a profile, which need not make a clip."""
    sizes = st.one_of(st.integers(1, 12), st.integers(1, 90))
    frames = draw(st.one_of(sizes, st.integers(1, 2000)))
    # Frames of a few tokens are where it matters whether their number is odd.
    tokens = st.one_of(
        st.integers(1, 700),
        st.integers(1, 200_000),
        st.tuples(st.integers(1, 20), st.integers(0, frames)).map(lambda x: x[0] * frames + x[1]),
    )
    precision = draw(st.sampled_from(native.Precision))
    eight_bit = precision == native.Precision.BITS_8
    methods = [native.Method[name] for name in EIGHT_BIT_METHODS]
    method = draw(st.sampled_from(methods if eight_bit else native.Method))
    # A frame that every clip has; windows are short then.
    exact = draw(st.sampled_from([(), ((0, 1),)])) if method in methods else ()
    return native.Problem(
        batch=draw(st.integers(1, 4)),
        heads=draw(st.integers(1, 5)),
        tokens=draw(tokens),
        head_size=draw(st.sampled_from((64, 128) if eight_bit else HEAD_SIZES)),
        grid_t=frames,
        grid_h=draw(sizes),
        grid_w=draw(sizes),
        sink_frames=draw(st.integers(0, 4)),
        last_sink_frames=draw(st.sampled_from([0, 0, 1, 2, (1 << 31) - 1])),
        alpha=0.9,
        text=draw(st.sampled_from(native.Text)),
        method=method,
        dtype=draw(st.sampled_from(native.Dtype)),
        block_q=draw(st.sampled_from([0, 64, 128] if eight_bit else [0, 64, 128, 256])),
        block_k=draw(st.sampled_from([0, 0, 64, 90] if eight_bit else [0, 0, 64, 100, 1000])),
        precision=precision,
        exact_frames=native_types.exact_frames(exact),
    )


@st.composite
def problems_within(draw: st.DrawFn, largest: native.Problem) -> native.Problem:
    """A clip none of whose sizes is above those of `largest`."""
    most = largest.tokens

    def up_to(limit: int) -> int:
        return draw(st.one_of(st.just(limit), st.integers(1, limit)))

    grid = {}
    for name in draw(st.sampled_from([("grid_t", *FRAME), (*FRAME, "grid_t")])):
        small = draw(st.sampled_from([5, largest.tokens])) if name in FRAME else largest.tokens
        grid[name] = up_to(min(getattr(largest, name), most, small))
        most //= grid[name]
    video = grid["grid_t"] * grid["grid_h"] * grid["grid_w"]
    rest = 0 if largest.text == native.Text.NONE else largest.tokens - video
    text = draw(st.one_of(st.just(rest), st.just(min(rest, 1)), st.integers(0, rest)))
    values = {name: getattr(largest, name) for name, _ in native.Problem._fields_}
    values |= grid | {"tokens": video + text}
    values["batch"] = up_to(largest.batch)
    values["heads"] = up_to(largest.heads)
    return native.Problem(**values)


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_the_bound_covers_every_problem_under_it(library, data):
    largest = data.draw(largest_problems())
    clip = data.draw(problems_within(largest))
    library.check(clip)
    assert library.workspace_size(clip) <= library.workspace_bound(largest)


@pytest.mark.parametrize(
    ("grid", "text_tokens"),
    [
        ((800, 3, 3), 0),  # 5 of 9 keys a frame, where T frames of S / T tokens have 4 of 8
        ((900, 2, 4), 0),
        ((1, 90, 79), 90),  # a block more than all 7,200 tokens make in one piece
        ((2, 1, 1), 7198),
    ],
)
def test_the_bound_covers_odd_frames_and_cuts(library, grid, text_tokens):
    for method in native.Method:
        for first, last in ((0, 0), (1, 0), (0, 1), (1, 2)):
            attributes = {"method": method, "sink_frames": first, "last_sink_frames": last}
            clip = problem(2, 3, 64, grid, text_tokens, native.Text.LAST, **attributes)
            largest = problem(2, 3, 64, (900, 90, 90), 0, native.Text.LAST, **attributes)
            largest.tokens = 7200
            assert clip.tokens <= largest.tokens
            assert library.workspace_size(clip) <= library.workspace_bound(largest)


@pytest.mark.parametrize("method", native.Method)
@pytest.mark.parametrize("name", CANONICAL)
def test_the_bound_of_a_clip_is_near_its_own_size(library, name, method):
    clip = problem(*CANONICAL[name], method=method)
    size = library.workspace_size(clip)
    assert size <= library.workspace_bound(clip) <= SLACK[method] * size + 16384


@pytest.mark.parametrize("size", ["batch", "heads", "tokens", "grid_t", "grid_h", "grid_w"])
@pytest.mark.parametrize("value", [0, -1])
def test_the_bound_of_nothing_is_an_error(library, size, value):
    largest = problem(*CANONICAL["cogvideox-5b"])
    setattr(largest, size, value)
    with pytest.raises(InvalidInputError, match=str(value)):
        library.workspace_bound(largest)


def test_the_bound_of_windows_takes_sizes_that_make_no_clip(library):
    attributes = {"method": native.Method.PIECEWISE, "sink_frames": 0}
    largest = problem(1, 1, 64, (2, 1, 1), 0, native.Text.NONE, **attributes)
    largest.grid_t = largest.grid_h = largest.grid_w = (1 << 31) - 1
    largest.tokens = 7200
    clip = problem(1, 1, 64, (2, 60, 60), 0, native.Text.NONE, **attributes)
    size = library.workspace_size(clip)
    assert size <= library.workspace_bound(largest) < 100 * size


def test_the_bound_ends_where_the_kernels_do(library):
    largest = problem(1, 1, 64, (1, 1, 8192 * 128), 0, native.Text.NONE)
    largest.grid_t = 4000
    assert library.workspace_bound(largest) > 0
    largest.tokens += 1
    with pytest.raises(UnsupportedError, match="tokens = 1048577 make 8193 key blocks"):
        library.workspace_bound(largest)
    largest.block_k = 1 << 20
    assert library.workspace_bound(largest) > 0
    largest.tokens = (1 << 31) - 1
    with pytest.raises(UnsupportedError, match="tokens = 2147483647 in 4000 frames are too many"):
        library.workspace_bound(largest)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("head_size", 80, UnsupportedError),
        ("dtype", 7, UnsupportedError),
        ("method", 5, InvalidInputError),
        ("precision", 2, InvalidInputError),
        ("alpha", 2.0, InvalidInputError),
        ("batch", 65536, InvalidInputError),
    ],
)
def test_the_bound_checks_attributes(library, name, value, error):
    largest = problem(*CANONICAL["cogvideox-5b"])
    setattr(largest, name, value)
    with pytest.raises(error, match=f"{name} .*= {value}|{name} = {value}|batch \\* heads"):
        library.workspace_bound(largest)


def test_too_small_a_workspace_is_refused_before_any_launch(library):
    clip = problem(*CANONICAL["cogvideox-5b"])
    size = library.workspace_size(clip)
    strides = native.Strides(batch=48 * clip.tokens * 64, head=clip.tokens * 64, token=64)
    nowhere = 1 << 12  # aligned, and never read
    names = ("q", "k", "v", "out", "sparsity")
    tensors = native.Tensors(**dict.fromkeys(names, nowhere))
    for name in ("q_strides", "k_strides", "v_strides", "out_strides"):
        setattr(tensors, name, strides)
    with pytest.raises(KernelError, match=rf"has {size - 1} bytes, {size} are needed"):
        library.attention(clip, tensors, None, nowhere, size - 1, 0)
    with pytest.raises(KernelError, match=rf"has {size - 1} bytes, {size} are needed"):
        library.classify(clip, tensors, native.Plan(), nowhere, size - 1, 0)
    with pytest.raises(InvalidInputError, match="not aligned to 256 bytes"):
        library.attention(clip, tensors, None, nowhere + 16, size, 0)
