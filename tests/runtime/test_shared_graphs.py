"""Graphs of several GPUs in the runtime: which runs are refused, and the part that a GPU gets."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rainfusion_trt.engine.recipe import Range
from rainfusion_trt.errors import InvalidInputError, RainFusionError, UnsupportedError
from rainfusion_trt.graph_file import GraphAccount
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.native_parallel import Share
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.sharing import Shared, sharing
from rainfusion_trt.runtime.artifacts import Part
from rainfusion_trt.runtime.base import Backend, TensorInfo
from rainfusion_trt.runtime.denoiser import GraphTransformer
from rainfusion_trt.runtime.graphs import Graph


def engine(gpus: tuple[int, int] | None, flavour: str | None = "tensorrt") -> Graph:
    found = None if gpus is None else Range(min=gpus[0], opt=gpus[0], max=gpus[1])
    return Graph("the engine e", GraphAccount(model="wan2.1-14b"), flavour, gpus=found)


@pytest.mark.parametrize(
    ("graph", "count", "kind", "words"),
    [
        (engine(None), 2, UnsupportedError, "for one GPU, .* export the model with --parallel"),
        (engine((2, 4)), 8, InvalidInputError, "for 2 to 4 GPUs .* or build it with --gpus 8"),
        (engine((2, 4)), 1, InvalidInputError, "ulysses=1 was asked for"),
        (engine(None, None), 2, UnsupportedError, "build an engine of it"),
    ],
)
def test_another_number_of_gpus_is_refused_before_anything_waits(graph, count, kind, words):
    parts = (Part("transformer", None, None, (graph,)),)
    name = "tensorrt" if graph.flavour else "onnxruntime"
    with pytest.raises(kind, match=words) as error:
        sharing(ParallelConfig(ulysses=count), None, [name], parts)
    assert "\n" not in str(error.value)


def test_numbers_that_fit(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    engine(None).check_gpus(1)
    engine((1, 4)).check_gpus(1)
    engine((2, 4)).check_gpus(4)
    parts = (Part("transformer", None, None, (engine(None),)),)
    assert sharing(None, None, ["tensorrt"], parts).first
    # Guidance alone needs nothing of an engine, only the processes.
    with pytest.raises(RainFusionError, match="torchrun --nproc-per-node 2"):
        sharing(ParallelConfig(guidance=2), None, ["tensorrt"], parts)


class Recorder(Backend):
    """Keeps what it was fed."""

    name = "tensorrt"
    device = torch.device("cpu")

    def __init__(self, inputs: dict[str, torch.dtype]) -> None:
        self.inputs = {n: TensorInfo(n, dtype, (), ()) for n, dtype in inputs.items()}
        self.outputs = {"sample": TensorInfo("sample", torch.float16, (), ())}

    def run(self, feed):
        self.fed = dict(feed)
        return {"sample": feed["hidden_states"]}

    def describe(self) -> str:
        return "recorder"


class Exchange:
    def __init__(self, parts: int, rank: int) -> None:
        self.share = Share(parts, rank)
        self.calls = 0
        self.kinds: set = set()

    @contextmanager
    def call(self, kind):
        self.calls += 1
        self.kinds.add(kind)
        yield


def test_a_gpu_gets_a_part_of_the_tokens():
    model = get_model("wan2.1-14b")
    names = ("hidden_states", "timestep", "encoder_hidden_states", "part", "sparsity")
    wide = ("timestep", "part", "sparsity")
    types = {name: torch.float32 if name in wide else torch.float16 for name in names}
    backend = Recorder(types)
    transformer = GraphTransformer(backend, model, model.config("tiny"))
    call = {
        "hidden_states": torch.zeros(1, 16, 3, 10, 14, dtype=torch.float16),  # 3x5x7 tokens
        "timestep": torch.zeros(1),
        "encoder_hidden_states": torch.zeros(1, 512, 32, dtype=torch.float16),
    }
    transformer(**call)
    assert tuple(backend.fed) == names and backend.fed["part"].shape == (105,)
    for parts in (2, 4):
        for rank in range(parts):
            exchange = Exchange(parts, rank)
            transformer.share_tokens(exchange)
            transformer(**call)
            expected = len(np.array_split(np.arange(105), parts)[rank])
            assert backend.fed["part"].shape == (expected,) and exchange.calls == 1
    first = backend.fed["part"]
    transformer(**call)
    assert backend.fed["part"] is first  # a captured graph holds its address
    assert len(exchange.kinds) == 1
    transformer(**call | {"hidden_states": torch.zeros(1, 16, 3, 10, 16, dtype=torch.float16)})
    assert len(exchange.kinds) == 2  # other shapes
    with pytest.raises(InvalidInputError, match="takes no speed, colour, as WanTransformer3DModel"):
        transformer(**call, speed=1, colour=None)
    other = GraphTransformer(backend, model, model.config("tiny"))
    other.share_tokens(exchange)
    other(**call)
    assert len(exchange.kinds) == 3  # another engine, as the second of two experts has


def test_processes_that_fell_back_to_different_backends_do_not_wait_for_each_other():
    met: list[bool] = []
    shared = object.__new__(Shared)
    shared.team = SimpleNamespace(
        rank=1, meet=lambda: met.append(True), agree=lambda make: "tensorrt"
    )
    with pytest.raises(UnsupportedError, match="process 1 runs torch and process 0 tensorrt"):
        shared.denoiser(SimpleNamespace(name="torch"), get_model("wan2.1-14b"))
    assert met == [True]
