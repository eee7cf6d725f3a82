"""Engines with the plugin on a GPU, built and run by the TensorRT that is installed.

The engine and the torch operator launch the same kernels on the same values, so they may differ by
no more than the rounding of an output to its dtype: relative error 2^-11 in float16, 2^-8 in
bfloat16. Against float32 attention the probabilities are rounded too; two layers in a row double
that, and the bounds leave a factor of two.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from rainfusion_trt import rainfusion_attention
from rainfusion_trt.engine import EngineRecipe, build_engine, load_metadata
from rainfusion_trt.engine.metadata import save_metadata
from rainfusion_trt.errors import EngineLoadError, InvalidInputError
from rainfusion_trt.hashing import file_sha256
from rainfusion_trt.operator.geometry import Kind, TokenLayout
from rainfusion_trt.testing import synthetic_heads

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, pytest.mark.xdist_group(__name__)]
TEXT_TOKENS, HEAD_SIZE = 17, 64
SMALL, LARGE = (5, 8, 10), (9, 15, 22)  # token grids
KINDS = [
    [Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL],
    [Kind.TEXTURAL, Kind.SPATIAL, Kind.TEMPORAL],
]
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SAME = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
NEAR = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
METHOD = "rainfusion"  # the one whose kinds the heads are made of


def tokens(grid: tuple[int, int, int]) -> int:
    return math.prod(grid) + TEXT_TOKENS


def write_model(path: Path, dtype: str) -> Path:
    """sample = attention(q, k, attention(q, k, v)): the second layer reuses the first's scratch."""
    import onnx
    import onnx_ir as ir
    from onnx import TensorProto, helper

    from rainfusion_trt.export.operator import dense_function

    element = getattr(TensorProto, dtype.upper())
    shape = ["batch", len(KINDS[0]), "tokens", HEAD_SIZE]
    attributes = {
        "text": "first",
        "method": METHOD,
        "alpha": 0.9,
        "sink_frames": 1,
        "scale": 0.0,
        "plugin_namespace": "rainfusion",
        "plugin_version": "1",
    }

    def attention(value: str, output: str) -> onnx.NodeProto:
        return helper.make_node(
            "RainFusionAttention",
            ["q", "k", value, "grid", "sparsity"],
            [output],
            f"attention_{output}",
            domain="rainfusion",
            **attributes,
        )

    inputs = [helper.make_tensor_value_info(name, element, shape) for name in "qkv"]
    inputs.append(helper.make_tensor_value_info("grid", element, ["t", "h", "w"]))
    inputs.append(helper.make_tensor_value_info("sparsity", TensorProto.FLOAT, [1]))
    graph = helper.make_graph(
        [attention("v", "inner"), attention("inner", "sample")],
        "two_attentions",
        inputs,
        [helper.make_tensor_value_info("sample", element, shape)],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("rainfusion", 1)]
    body = ir.serde.serialize_function(dense_function(kv_len=False))
    model = helper.make_model(graph, opset_imports=opsets, functions=[body], ir_version=10)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="module")
def engines(tmp_path_factory, plugin_library):
    """Engine folders by dtype, each with a profile for either grid."""
    pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("engines")
    shapes = {
        name: {x: [2, len(KINDS[0]), tokens(grid), HEAD_SIZE] for x in "qkv"} | {"grid": list(grid)}
        for name, grid in {"small": SMALL, "large": LARGE}.items()
    }
    return {
        dtype: build_engine(
            write_model(folder / f"{dtype}.onnx", dtype),
            recipe=EngineRecipe(precision=dtype, shapes=shapes),
            plugin=plugin_library,
        )
        for dtype in DTYPES
    }


@pytest.fixture
def load(engines, plugin_library):
    from rainfusion_trt.runtime.tensorrt import TensorRTBackend

    backends = []

    def load(dtype: str = "float16", **options) -> TensorRTBackend:
        backends.append(TensorRTBackend(engines[dtype], plugin=plugin_library, **options))
        return backends[-1]

    yield load
    for backend in backends:
        backend.close()


def make_feed(grid, dtype=torch.float16, sparsity=0.0, seed=0) -> dict[str, torch.Tensor]:
    layout = TokenLayout(grid, tokens(grid), "first", 1)
    q, k, v = synthetic_heads(layout, KINDS, HEAD_SIZE, dtype=dtype, device="cuda", seed=seed)
    return {
        **{name: x.contiguous() for name, x in zip("qkv", (q, k, v), strict=True)},
        "grid": torch.empty(grid, dtype=dtype, device="cuda"),
        "sparsity": torch.full((1,), sparsity, device="cuda"),
    }


def torch_path(feed: dict[str, torch.Tensor]) -> torch.Tensor:
    def attention(v):
        settings = {"text": "first", "sparsity": feed["sparsity"], "method": METHOD}
        return rainfusion_attention(feed["q"], feed["k"], v, feed["grid"], **settings)

    return attention(attention(feed["v"]))


def relative_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    out, wanted = out.float(), wanted.float()
    assert out.isfinite().all()
    return ((out - wanted).norm() / wanted.norm()).item()


def assert_same(out: torch.Tensor, feed: dict[str, torch.Tensor]) -> None:
    assert relative_error(out, torch_path(feed)) <= SAME[out.dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8])
def test_equals_the_torch_operator(load, dtype, sparsity):
    backend = load(dtype)
    for grid in (SMALL, LARGE, SMALL):  # either optimisation profile, and back
        feed = make_feed(grid, DTYPES[dtype], sparsity)
        out = backend.run(feed)["sample"]
        assert out.dtype == DTYPES[dtype] and out.shape == feed["q"].shape
        assert_same(out, feed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_dense_equals_float32_attention(load, dtype):
    feed = make_feed(LARGE, DTYPES[dtype])
    q, k, v = (feed[name].float() for name in "qkv")
    wanted = F.scaled_dot_product_attention(q, k, F.scaled_dot_product_attention(q, k, v))
    assert relative_error(load(dtype).run(feed)["sample"], wanted) < NEAR[DTYPES[dtype]]


def test_sparsity_changes_the_result(load):
    """Guards the comparisons above: heads of mixed kinds do lose pairs at these sizes."""
    backend = load()
    dense = backend.run(make_feed(LARGE, sparsity=0.0))["sample"].clone()
    sparse = backend.run(make_feed(LARGE, sparsity=0.8))["sample"]
    assert relative_error(sparse, dense) > 10 * SAME[torch.float16]


@pytest.mark.parametrize("stream", ["default", "own"])
def test_cuda_graph_while_sparsity_and_shape_change(load, stream):
    backend = load(cuda_graph=True)
    chosen = torch.cuda.Stream() if stream == "own" else torch.cuda.current_stream()
    with torch.cuda.stream(chosen):
        for grid in (LARGE, SMALL):
            captured = None
            for step, sparsity in enumerate((0.0, 0.5, 0.8, 0.0)):
                feed = make_feed(grid, sparsity=sparsity, seed=step)
                out = backend.run(feed)["sample"]
                assert_same(out, feed)
                assert captured in (None, backend._graph)  # replayed, not captured again
                captured = backend._graph


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_two_contexts_on_two_streams(load, cuda_graph):
    backends = [load(cuda_graph=cuda_graph) for _ in range(2)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    feeds = [make_feed(LARGE, sparsity=s, seed=i) for i, s in enumerate((0.5, 0.8))]
    wanted = [torch_path(feed) for feed in feeds]
    torch.cuda.synchronize()
    outputs: list[list[torch.Tensor]] = [[], []]
    for _ in range(10):
        for index in range(2):
            with torch.cuda.stream(streams[index]):
                outputs[index].append(backends[index].run(feeds[index])["sample"].clone())
    torch.cuda.synchronize()
    for index in range(2):
        for out in outputs[index]:
            assert relative_error(out, wanted[index]) <= SAME[torch.float16]


def test_one_context_on_changing_streams(load):
    """Calls share scratch memory, so a call waits for the one before it."""
    backend = load()
    feeds = [make_feed(LARGE, sparsity=0.5, seed=seed) for seed in range(4)]
    wanted = [torch_path(feed) for feed in feeds]
    streams = [torch.cuda.current_stream(), *(torch.cuda.Stream() for _ in range(3))]
    torch.cuda.synchronize()
    outputs = []
    for feed, stream in zip(feeds, streams, strict=True):
        with torch.cuda.stream(stream):
            outputs.append(backend.run(feed)["sample"])
    torch.cuda.synchronize()
    for out, expected in zip(outputs, wanted, strict=True):
        assert relative_error(out, expected) <= SAME[torch.float16]


def test_no_call_waits_for_the_device(load):
    backend, feed = load(), make_feed(LARGE, sparsity=0.5)
    backend.run(feed)
    torch.cuda.synchronize()
    torch.cuda._sleep(1_000_000_000)  # some tenths of a second of work before it
    busy = torch.cuda.Event()
    busy.record()
    backend.run(feed)
    assert not busy.query()
    torch.cuda.synchronize()


def test_scratch_memory_is_torchs(load):
    backend, feed = load(), make_feed(LARGE, sparsity=0.5)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    out = backend.run(feed)["sample"]
    scratch = torch.cuda.memory_allocated() - before - out.numel() * out.element_size()
    layer = feed["k"].numel() * feed["k"].element_size()
    assert scratch >= layer  # at least the result of the first attention


def test_feeds_that_do_not_fit(load):
    backend, feed = load(), make_feed(SMALL)
    rows = tokens(SMALL)
    for change, words in [
        ({"q": feed["q"].float()}, "float32"),
        ({"q": feed["q"].cpu()}, "is on cpu"),
        ({"q": feed["q"][:, :, : rows - 1].contiguous()}, r"input q is float16 \[2, 3, 416, 64\]"),
        ({name: feed[name][:, :, :64].contiguous() for name in "qkv"}, "takes float16"),
        ({name: make_feed(LARGE)[name] for name in "qkv"}, "no optimisation profile"),
    ]:
        with pytest.raises(InvalidInputError, match=words):
            backend.run({**feed, **change})
    with pytest.raises(InvalidInputError, match="missing grid"):
        backend.run({name: x for name, x in feed.items() if name != "grid"})
    assert_same(backend.run(feed)["sample"], feed)  # and it still runs


def test_corrupt_engine_file(engines, plugin_library, tmp_path):
    from rainfusion_trt.runtime.tensorrt import TensorRTBackend

    built = load_metadata(engines["float16"])
    plan = tmp_path / "engine.plan"
    plan.write_bytes(bytes(built.engine_size))
    save_metadata(tmp_path, built)
    with pytest.raises(EngineLoadError, match="does not match the hash"):
        TensorRTBackend(tmp_path, plugin=plugin_library)
    # With a metadata.json that fits, TensorRT itself has to notice.
    save_metadata(tmp_path, built.model_copy(update={"engine_sha256": file_sha256(plan)}))
    with pytest.raises(EngineLoadError, match="cannot load .*engine.plan"):
        TensorRTBackend(tmp_path, plugin=plugin_library)


def test_tiny_cogvideox(tmp_path, plugin_library):
    """Export, native build and both ways of running, for a whole transformer."""
    export = pytest.importorskip("rainfusion_trt.export")
    from rainfusion_trt import disable, enable
    from rainfusion_trt.models import VideoSize, get_model
    from rainfusion_trt.runtime.tensorrt import TensorRTBackend

    model, size = get_model("cogvideox-5b"), VideoSize(frames=33, height=128, width=192)
    transformer = model.create(model.config("tiny"), dtype=torch.bfloat16, device="cuda")
    onnx = tmp_path / "tiny.onnx"
    export.export_model(model, transformer, size, output=onnx)
    profile = EngineRecipe(model="cogvideox-5b", precision="bfloat16")
    folder = build_engine(onnx, recipe=profile, plugin=plugin_library)
    backend = TensorRTBackend(folder, plugin=plugin_library)
    inputs = model.example_inputs(transformer, size, batch=2, device="cuda")

    def eager() -> torch.Tensor:
        with torch.no_grad():
            return transformer(**model.forward_kwargs(inputs), return_dict=False)[0]

    # bfloat16 rounds after every one of some hundred operators, in another order in the engine.
    for sparsity in (0.0, 0.5):
        out = backend.run({**inputs, "sparsity": torch.full((1,), sparsity, device="cuda")})
        if sparsity > 0:
            enable(transformer, sparsity=sparsity)
        wanted = eager()
        assert relative_error(out["sample"], wanted) < 2e-2
    disable(transformer)
    backend.close()
