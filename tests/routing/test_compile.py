"""torch.compile of transformers with RainFusion: full graphs, and one graph for all steps."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

import rainfusion_trt
from rainfusion_trt.errors import InvalidInputError
from tests.helpers.routed_models import ALL_CLASSES, CLASSES, assert_same, call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")

# Its forward in diffusers branches on the values of the image embeddings, enabled or not.
FULL = [name for name in CLASSES if name != "hunyuanvideo-1.5"]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def breaks() -> dict:
    return dict(counters["graph_break"])


def ten_steps(transformer, call, routing) -> None:
    for step in range(10):
        routing.sparsity = 0.0 if step < 2 else 0.08 * step
        run(transformer, {**call, "timestep": call["timestep"] - 10 * step})


def compile_blocks(transformer, **options) -> None:
    for name, blocks in transformer.named_children():
        if name.endswith("blocks"):
            for block in blocks:
                block.compile(**options)


@pytest.mark.parametrize("name", FULL)
def test_whole_transformer_is_one_graph_for_all_steps(name):
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=name, method="rainfusion")
    routing.sparsity = 0.6
    sparse = run(transformer, call)
    routing.sparsity = 0.0
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, call), dense, atol=2e-5, rtol=0)
    before = graphs()
    ten_steps(compiled, call, routing)
    routing.sparsity = 0.6
    torch.testing.assert_close(run(compiled, call), sparse)
    assert graphs() == before and not breaks()
    assert routing.routed == model.attention_count(transformer.config)


def test_a_precision_compiles_nothing_anew():
    """Once it was seen: steps in 16 bits before and after those in 8 share their graphs."""
    model, transformer = tiny("cogvideox-5b")
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0)
    wanted = {}
    for precision in ("16bit", "8bit"):
        routing.precision = precision
        wanted[precision] = run(transformer, call)
    assert not torch.equal(*wanted.values())
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    counts = []
    for precision in ("16bit", "8bit", "16bit", "8bit"):
        routing.precision = precision
        torch.testing.assert_close(run(compiled, call), wanted[precision], atol=2e-5, rtol=0)
        counts.append(graphs())
    first = counts[0]
    assert counts == [first, 2 * first, 2 * first, 2 * first] and not breaks()
    with pytest.raises(InvalidInputError, match="precision='4bit' is not one of 16bit, 8bit"):
        routing.precision = "4bit"


@pytest.mark.parametrize("name", ALL_CLASSES)
def test_blocks_are_one_graph_for_all_steps(name):
    """Also of classes that diffusers lists no repeated blocks for."""
    model, transformer = tiny(name)
    call = call_of(model, transformer)
    dense = run(transformer, call)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=name, method="rainfusion")
    compile_blocks(transformer, backend="eager", fullgraph=True)
    assert_same(name, run(transformer, call), dense)
    before = graphs()
    ten_steps(transformer, call, routing)
    assert graphs() == before and not breaks()
    assert routing.routed == model.attention_count(transformer.config)


def test_diffusers_regional_compilation_shares_one_graph():
    model, transformer = tiny("wan2.1-1.3b", num_layers=4)
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    expected = run(transformer, call)
    transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    torch.testing.assert_close(run(transformer, call), expected)
    assert graphs() == 1 and routing.routed == 4


@pytest.mark.parametrize("how", ["torch.compile", "compile()"])
def test_compiled_before_enable(how):
    """Also one that has run dense: it is traced again, and again dense after disable."""
    model, transformer = tiny("cogvideox-5b")
    call = call_of(model, transformer)
    if how == "compile()":
        transformer.compile(backend="eager", fullgraph=True)
        compiled = transformer
    else:
        compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    dense = run(compiled, call)
    routing = rainfusion_trt.enable(compiled, sparsity=0.7, method="rainfusion")
    assert rainfusion_trt.routing.routing_of(transformer) is routing
    sparse = run(compiled, call)
    assert (sparse - dense).abs().max() > 1e-3 and routing.routed == 2
    rainfusion_trt.disable(compiled)
    assert torch.equal(run(compiled, call), dense)


def test_other_sizes_make_few_graphs():
    """The grid is a shape of the graph and none of its constants."""
    model, transformer = tiny("wan2.1-1.3b")
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    compile_blocks(transformer, backend="eager", fullgraph=True)
    sizes = [(17, 64, 64), (21, 64, 96), (25, 96, 64), (29, 96, 96), (33, 128, 96), (17, 96, 128)]
    for size in sizes:
        call = call_of(model, transformer, rainfusion_trt.models.VideoSize(*size))
        run(transformer, call)
        assert routing.routed == 2
    assert graphs() <= 4


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor():
    model, transformer = tiny("wan2.1-1.3b", num_layers=1)
    call = call_of(model, transformer)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    expected = run(transformer, call)
    compiled = torch.compile(transformer, fullgraph=True)
    torch.testing.assert_close(run(compiled, call), expected, atol=1e-4, rtol=0)
    routing.sparsity = 0.0
    before = graphs()
    rainfusion_trt.disable(transformer)
    dense = run(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    torch.testing.assert_close(run(compiled, call), dense, atol=1e-4, rtol=0)
    assert graphs() >= before


def test_a_training_step_compiles():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    transformer.train().requires_grad_(True)
    weight = transformer.blocks[0].attn1.to_q.weight
    loss = transformer(**call, return_dict=False)[0].square().mean()
    right = torch.autograd.grad(loss, weight)[0]
    rainfusion_trt.enable(transformer, sparsity=0.0)
    compiled = torch.compile(transformer, backend="aot_eager", fullgraph=True)
    loss = compiled(**call, return_dict=False)[0].square().mean()
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], right, atol=1e-6, rtol=1e-3)


def test_errors_name_the_block_under_compile():
    model, transformer = tiny("wan2.1-1.3b")
    call = call_of(model, transformer)
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    transformer.blocks[1].attn1.set_processor(type("Other", (), {"__call__": lambda *a: a[2]})())
    compiled = torch.compile(transformer, backend="eager")
    with pytest.raises(rainfusion_trt.errors.RainFusionError, match=r"blocks\.1\.attn1"):
        run(compiled, call)
