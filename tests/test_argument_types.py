"""Arguments of the wrong type, of every public function: one line, before any work."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt import export, routing
from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.runtime.steps import Flag

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("cogvideox")
SIZE = VideoSize(9, 64, 96)
OBJECT = object()
LONG = np.zeros((40, 40))  # whose text has many lines

# Nothing that takes one of these takes any of the others.
A_TEXT, A_NUMBER, A_FLAG, A_MAPPING = "0.8", 3.5, True, {"a": 1}
NO_NUMBER = (A_TEXT, A_FLAG, A_MAPPING, [0.5], LONG, OBJECT, nn.Identity())
NO_INTEGER = (*NO_NUMBER, A_NUMBER)
NO_FLAG = ("no", 1, 0.0, None, [], LONG, OBJECT)
NO_TEXT = (7, A_NUMBER, A_FLAG, A_MAPPING, [5], b"x", LONG, OBJECT)
NO_FUNCTION = (A_TEXT, 7, A_FLAG, A_MAPPING, [1], OBJECT)
NO_OBJECT = (A_TEXT, 7, A_FLAG, A_MAPPING, [1], LONG, OBJECT)
NO_ROW = (A_TEXT, 7, A_FLAG, A_MAPPING, OBJECT)


def cases(**wrong: Iterable[Any]) -> Any:
    """One test of each name: its wrong values, tried one after the other."""
    return pytest.mark.parametrize(("name", "values"), list(wrong.items()), ids=list(wrong))


def refuse(call: Callable[..., Any], given: dict[str, Any], name: str, values: Iterable[Any]):
    """Every value is refused in one line, that says whose it is."""
    for value in values:
        with pytest.raises(InvalidInputError) as error:
            call(**{**given, name: value})
        text = str(error.value)
        assert name in text and len(text.splitlines()) == 1 and len(text) < 400, text


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(MODEL, size=SIZE)


@pytest.fixture(scope="module")
def transformer(pipe):
    return pipe.transformer


# -- the operator ----------------------------------------------------------------------------------

OPERATOR = {
    "q": (*NO_OBJECT, None),
    "k": (*NO_OBJECT, None),
    "grid": (*NO_ROW, "344", (3.0, 4, 4), (3, 4), ["3", "4", "4"], (True, 4, 4), None, A_NUMBER),
    "text": (*NO_TEXT, None),
    "sparsity": (*NO_NUMBER, None, torch.zeros(1, dtype=torch.float64), torch.zeros(2)),
    "kv_len": (
        *NO_OBJECT,
        torch.tensor([9]),
        torch.tensor([9.0]),
        torch.zeros(2, dtype=torch.int32),
    ),
    "method": (*NO_TEXT, None),
    "alpha": (*NO_NUMBER, None),
    "sink_frames": (*NO_INTEGER, None),
    "scale": (*NO_NUMBER, {}, []),
    "precision": (*NO_TEXT, None),
}


@cases(**OPERATOR, v=OPERATOR["k"], return_lse=NO_FLAG)
def test_of_attention(name, values):
    q = torch.zeros(1, 2, 48, 16)
    given = {"q": q, "k": q, "v": q, "grid": (3, 4, 4), "method": "rainfusion"}
    refuse(rainfusion_trt.rainfusion_attention, given, name, values)


@cases(**OPERATOR)
def test_of_classify_heads(name, values):
    q = torch.zeros(1, 2, 48, 16)
    refuse(rainfusion_trt.classify_heads, {"q": q, "k": q, "grid": (3, 4, 4)}, name, values)


def test_grids_and_sparsities_of_many_types():
    q = torch.randn(1, 2, 48, 16)
    expected = rainfusion_trt.rainfusion_attention(q, q, q, (3, 4, 4), sparsity=0.5)
    for grid in ([3, 4, 4], np.array([3, 4, 4]), torch.Size([3, 4, 4]), torch.empty(3, 4, 4)):
        for sparsity in (np.float64(0.5), np.float32(0.5), torch.tensor([0.5])):
            made = rainfusion_trt.rainfusion_attention(q, q, q, grid, sparsity=sparsity)
            assert torch.equal(made, expected)


@pytest.mark.parametrize("strict", [False, True])
def test_the_checks_are_traced(strict):
    """With sizes that vary, which are symbols then, by torch.export and by torch.compile."""

    class Attention(nn.Module):
        def forward(self, q: torch.Tensor) -> torch.Tensor:
            grid = (q.shape[2] // 12, 3, 4)
            return rainfusion_trt.rainfusion_attention(q, q, q, grid, method="rainfusion")

    module, frames = Attention(), torch.export.Dim("frames", min=3, max=9)
    first, second = torch.randn(1, 2, 60, 16), torch.randn(1, 2, 84, 16)
    shapes = ({2: 12 * frames},)
    program = torch.export.export(module, (first,), dynamic_shapes=shapes, strict=strict)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    for q in (first, second):
        assert torch.equal(program.module()(q), module(q))
        assert torch.equal(compiled(q), module(q))


def test_exact_frames_that_vary_are_traced():
    """From the second call on torch.compile has their numbers as symbols."""
    q = torch.randn(1, 1, 6 * 64, 16)

    def attend(frames) -> torch.Tensor:
        return rainfusion_trt.rainfusion_attention(q, q, q, (6, 8, 8), exact_frames=frames)

    torch._dynamo.reset()
    compiled = torch.compile(attend, backend="eager", fullgraph=True)
    for frames in ((1,), (2,), (3,), ((2, 4),), ((3, 5),), range(1, 3)):
        assert torch.equal(compiled(frames), attend(frames))


# -- PyTorch ---------------------------------------------------------------------------------------


@cases(
    transformer=NO_OBJECT,
    preset=NO_TEXT,
    scheduler=NO_OBJECT,
    sparsity=NO_NUMBER,
    schedule=(*NO_OBJECT, [0.5]),
    method=NO_TEXT,
    alpha=(*NO_NUMBER, None),
    sink_frames=(*NO_INTEGER, None),
    last_sink_frames=(*NO_INTEGER, None),
    exact_frames=(*NO_ROW, ["1"], [1.0], [None], [[1.0, 2]], None),
    precision=(*NO_TEXT, None),
    dense_layers=(*NO_ROW, ["0"], [0.0]),
    model=NO_TEXT,
    grid=(7, A_NUMBER, A_FLAG, A_MAPPING, OBJECT, [3.0, 4, 4], ["3", "4", "4"]),
    text=(*NO_TEXT, None),
    text_tokens=(A_TEXT, A_NUMBER, A_FLAG, [1], LONG, OBJECT, None),
    kv_len=(7, A_NUMBER, A_FLAG, A_MAPPING, [1], LONG, OBJECT),
    allow_dense=NO_FLAG,
)
def test_of_enable(transformer, name, values):
    place = {"grid": (3, 4, 4), "text": "last", "text_tokens": 16}
    given = place if name in {*place, "kv_len"} else {}
    refuse(rainfusion_trt.enable, {"transformer": transformer, **given}, name, values)
    assert routing.routing_of(transformer) is None


@pytest.mark.parametrize(
    "function", [rainfusion_trt.disable, rainfusion_trt.cp_plan, routing.survey, routing.routing_of]
)
def test_of_a_transformer(function):
    refuse(function, {}, next(iter(inspect.signature(function).parameters)), NO_OBJECT)


def test_of_loading():
    paths = (7, A_FLAG, A_MAPPING, [1], None, OBJECT)
    refuse(MODEL.load, {"dtype": torch.float32}, "checkpoint", paths)
    refuse(MODEL.load, {"checkpoint": "x"}, "dtype", ("fp16", None))
    refuse(MODEL.create, {"config": MODEL.config("tiny")}, "dtype", ("fp16", None))


# -- export and engines ----------------------------------------------------------------------------


@cases(
    model=(*NO_OBJECT, "cogvideox"),
    transformer=(*NO_OBJECT, nn.Identity()),
    size=(*NO_OBJECT, (9, 64, 96), "9x64x96"),
    output=(7, A_FLAG, A_MAPPING, [1], None, OBJECT),
    batch=NO_INTEGER,
    settings=(*NO_OBJECT, {"method": "rainfusion"}),
    dynamic=NO_FLAG,
    component=NO_TEXT,
    parallel=NO_FLAG,
    run_compare=NO_FLAG,
    stage=NO_FUNCTION,
    progress=NO_FUNCTION,
)
def test_of_export_model(tmp_path, transformer, name, values):
    path = tmp_path / "model.onnx"
    given = {"model": MODEL, "transformer": transformer, "size": SIZE, "output": path}
    refuse(export.export_model, given, name, values)
    assert not path.exists()


@cases(
    module=NO_OBJECT,
    inputs=NO_OBJECT[1:3],
    grid=(7, OBJECT, None),
    attentions=NO_INTEGER,
    name=NO_TEXT,
    dynamic=(True, "x", [1]),
)
def test_of_export_module(tmp_path, name, values):
    path = tmp_path / "module.onnx"
    given = {"module": nn.Linear(2, 2).eval(), "inputs": {}, "grid": (1, 2, 2), "output": path}
    refuse(export.export_module, given, name, values)
    assert not path.exists()


def test_of_loras(transformer):
    given = {"model": MODEL, "transformer": transformer}
    refuse(export.fuse_loras, given, "loras", ("a.safetensors", 7, [7]))  # a text is no list of one


@pytest.mark.parametrize("field", ["frames", "height", "width"])
def test_of_a_size(field):
    refuse(VideoSize, {"frames": 9, "height": 64, "width": 96}, field, (*NO_INTEGER, None))


@cases(
    onnx=(7, A_FLAG, A_MAPPING, [1], None, OBJECT),
    recipe=(7, A_FLAG, A_MAPPING, [1], OBJECT),
    plugin=(7, A_FLAG, A_MAPPING, [1], OBJECT),
    output=(7, A_FLAG, A_MAPPING, [1], OBJECT),
    target=(80, A_FLAG, A_MAPPING, [80], OBJECT),
    flavour=NO_TEXT,
    force=NO_FLAG,
    progress=NO_FLAG,
    gpus=(A_NUMBER, A_FLAG, A_MAPPING, [2], OBJECT),
)
def test_of_build_engine(tmp_path, name, values):
    given = {"onnx": tmp_path / "absent.onnx", "recipe": "cogvideox-5b"}
    refuse(rainfusion_trt.build_engine, given, name, values)


@cases(
    path=(7, A_FLAG, A_MAPPING, [1], None, OBJECT),
    sparsity=(*NO_NUMBER, None),
    device=(0, A_FLAG, A_MAPPING, OBJECT),
    cuda_graph=NO_FLAG,
    allow_dense=NO_FLAG,
)
def test_of_load_graph(tmp_path, name, values):
    refuse(rainfusion_trt.load_graph, {"path": tmp_path / "absent.onnx"}, name, values)


# -- Pipeline --------------------------------------------------------------------------------------

FILES = (7, A_FLAG, ["x"], OBJECT)


@cases(
    model=NO_TEXT,
    engine=FILES,
    onnx=FILES,
    engine_2=(*FILES, A_MAPPING),
    onnx_2=(*FILES, A_MAPPING),
    checkpoint=(*FILES, A_MAPPING),
    transformer=FILES,
    pipe=(*NO_OBJECT, nn.Identity()),
    other_classes=(value for value in NO_FLAG if value is not None),
    backend=(*NO_TEXT, None),
    allow_fallback=NO_FLAG,
    allow_dense=NO_FLAG,
    preset=NO_TEXT,
    sparsity=NO_NUMBER,
    dense_fraction=NO_NUMBER,
    schedule=NO_ROW,
    method=NO_TEXT,
    alpha=NO_NUMBER,
    sink_frames=NO_INTEGER,
    last_sink_frames=NO_INTEGER,
    exact_frames=(*NO_ROW, ["1"], [1.0], [[1.0, 2]]),
    precision=(7, A_FLAG, A_MAPPING, OBJECT),
    dense_layers=(*NO_ROW, ["0"]),
    cache=(7, A_FLAG, {"rule": "easy"}, ["easy"], LONG, OBJECT),
    cache_threshold=NO_NUMBER,
    cache_ratios=(7, A_FLAG, A_MAPPING, OBJECT),
    cuda_graph=NO_FLAG,
    compile=NO_FLAG,
    device=(0, A_FLAG, A_MAPPING, OBJECT),
    cpu_offload=NO_FLAG,
    dtype=("fp16", 16, float),
    parallel=NO_OBJECT,
    wait=NO_FLAG,
)
def test_of_a_pipeline(pipe, name, values):
    given = {"pipe": pipe, "backend": "torch", "device": "cpu", "sparsity": 0.0}
    refuse(rainfusion_trt.Pipeline, given, name, values)


@pytest.fixture(scope="module")
def pipeline(pipe):
    with rainfusion_trt.Pipeline(pipe=pipe, backend="torch", device="cpu", sparsity=0.0) as made:
        made.pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
        yield made


@cases(
    prompt=NO_TEXT,
    negative_prompt=NO_TEXT,
    image=(7, OBJECT),
    num_frames=("81", *NO_INTEGER),
    height=NO_INTEGER,
    width=NO_INTEGER,
    num_inference_steps=NO_INTEGER,
    guidance_scale=NO_NUMBER,
    generator=NO_OBJECT,
    seed=NO_INTEGER,
    sparsity=NO_NUMBER,
    schedule=NO_ROW,
    precision=(7, A_FLAG, A_MAPPING, OBJECT),
    cache=(7, A_FLAG, {"rule": "easy"}, ["easy"], LONG, OBJECT),
    cache_threshold=NO_NUMBER,
    callback_on_step_end=NO_FUNCTION,
    progress=NO_FUNCTION,
    cancel=NO_OBJECT,
    profile=NO_FLAG,
    return_dict=NO_FLAG,
    output_type=NO_TEXT,
    latents=NO_OBJECT,
    timesteps=(7, A_NUMBER, OBJECT),
    max_sequence_length=NO_INTEGER,
    num_videos_per_prompt=NO_INTEGER,
)
def test_of_a_call(pipeline, name, values):
    given = {"prompt": "a", "num_frames": 9, "height": 64, "width": 96, "num_inference_steps": 2}
    refuse(pipeline, given, name, values)


# -- the checks themselves -------------------------------------------------------------------------

# What torch.compile traces checks itself; the others are for Pipeline, with what `enable` gave.
OTHERWISE = {"rainfusion_attention", "classify_heads", "compile_blocks", "uncompile_blocks"}


def test_no_public_function_is_left_out():
    public = {
        name: getattr(module, name)
        for module in (rainfusion_trt, export, routing)
        for name in module.__all__
    }
    functions = {name for name, value in public.items() if inspect.isfunction(value)}
    unchecked = {name for name in functions if not hasattr(public[name], "__wrapped__")}
    assert unchecked == OTHERWISE and len(functions) > 12


@typed
def example(
    count: int | None = None,
    *,
    share: float = 0.0,
    row: Sequence[int] | None = None,
    where: str | Path = "",
    kind: Literal["a", "b"] = "a",
    flag: bool = False,
    stop: Flag | None = None,
    what: Mapping[str, int] | Callable[[], int] | None = None,
    **others: Any,
) -> tuple[Any, ...]:
    return count, share, row, where, kind, flag, stop, what, others


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"count": "81"}, "count='81': give an integer, or leave it out"),
        ({"share": "0.8"}, "share='0.8': give a number"),
        ({"row": [1, "2"]}, "row=[1, '2']: give a sequence, each an integer, or leave it out"),
        ({"where": 5}, "where=5: give a text or a path"),
        ({"kind": 5}, "kind=5: give 'a' or 'b'"),
        ({"flag": "no"}, "flag='no': give True or False"),
        ({"stop": True}, "stop=True: give a Flag of rainfusion_trt, or leave it out"),
        ({"what": 5}, "what=5: give a mapping or a function, or leave it out"),
    ],
)
def test_a_message_has_name_value_and_remedy(given, message):
    with pytest.raises(InvalidInputError) as error:
        example(**given)
    assert str(error.value) == message


def test_what_is_right_goes_on_as_it_is():
    once = iter([1, 2])
    assert example(np.int64(3), share=np.float32(0.5), row=once)[2] is once
    assert list(once) == [1, 2]  # it was not used up
    for row in (range(3), torch.Size([1]), {1}, np.arange(3), (np.int64(1),), []):
        assert example(row=row)[2] is row
    assert example(flag=np.True_, stop=threading.Event(), share=1, kind="c", other=5)
    with pytest.raises(TypeError, match="positional"):  # Python's own errors are as they were
        example(1, 2)
