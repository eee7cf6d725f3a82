"""The hash of weights: equal for equal weights in whatever dtype, else not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.graph_file import GraphAccount
from rainfusion_trt.weights_hash import adapters, check_weights, weights_hash


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(300, 200), nn.LayerNorm(200))


def exported(module: nn.Module, dtype: torch.dtype) -> GraphAccount:
    name = str(dtype).removeprefix("torch.")
    return GraphAccount(dtype=name, weights_sha256=weights_hash(copy.deepcopy(module).to(dtype)))


@pytest.mark.parametrize("origin", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("graph", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("here", [torch.float32, torch.float16, torch.bfloat16])
def test_one_checkpoint_in_all_dtypes(origin, graph, here):
    checkpoint = network().to(origin)
    account = exported(checkpoint, graph)
    check_weights(account, copy.deepcopy(checkpoint).to(here), "the graph")
    if {graph, here} != {torch.float16, torch.bfloat16}:
        with pytest.raises(InvalidInputError, match="the graph has other weights"):
            check_weights(account, network(seed=1).to(origin).to(here), "the graph")


def test_names_shapes_and_values_count():
    base = network()
    wanted = weights_hash(base)
    assert set(wanted) == {"float32", "float16", "bfloat16"}
    assert weights_hash(network()) == wanted
    assert weights_hash(torch.compile(base)) == wanted
    assert weights_hash(nn.Sequential(base)) != wanted
    for parameter in range(4):
        changed = copy.deepcopy(base)
        with torch.no_grad():
            list(changed.parameters())[parameter].mul_(1.1).add_(0.1)
        assert all(weights_hash(changed)[kind] != wanted[kind] for kind in wanted)


def test_weights_that_are_not_there():
    assert weights_hash(nn.Linear(2, 2, device="meta")) == {}
    quantised = nn.Linear(2, 2)
    quantised.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    assert weights_hash(quantised) == {}
    check_weights(exported(network(), torch.float32), quantised, "the graph")


def test_a_module_without_adapters():
    assert adapters(network()) == ()
