"""The package's operator and the study's own rules, which share no code, agree."""

from dataclasses import replace

import pytest
import torch

from benchmarks.film.catalogue import Catalogue
from benchmarks.film.equal import LEAST, MOST, TOLERANCE, match
from benchmarks.film.evaluate import dense_attention
from benchmarks.film.model import (
    CHANNELS,
    TEXT_SIZE,
    Attending,
    build_model,
    rotary_of,
    velocity,
)
from benchmarks.film.product import EnabledRule, OperatorRule
from benchmarks.film.rules import WindowRule
from benchmarks.film.sampled import SampledKindRule
from benchmarks.film.scene import FULL, TINY
from rainfusion_trt.operator.settings import METHODS

CPU = torch.device("cpu")
needs_piecewise = pytest.mark.skipif(
    "piecewise" not in METHODS, reason="the operator has no piecewise"
)
# Boxes of 4 x 8 x 6 and 4 x 4 x 8 are those of the rule on this grid.
SCENE = replace(
    FULL,
    grid=(5, 16, 24),
    heads=2,
    shapes={"cube": ((4, 6, 8), (4, 4, 8)), "long": ((4, 8, 6), (4, 4, 8))},
)


def inputs(scene=SCENE):
    generator = torch.Generator().manual_seed(0)
    shape = (2, scene.tokens, scene.head_size)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    place = torch.randn(shape, generator=generator).cumsum(1) / scene.tokens**0.5
    return q + 3 * place, k + 3 * place, v + place


@needs_piecewise
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_piecewise_is_the_rule_of_windows_and_means(sparsity):
    cut = Catalogue(SCENE, CPU).cut("long")
    rule = WindowRule("study", sparsity, SCENE, *cut, "mean", "means")
    product = OperatorRule("product", sparsity, SCENE, "piecewise")
    q, k, v = inputs()
    wanted, found = rule(q, k, v), product(q, k, v)
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=0)
    assert (found - dense_attention(q, k, v)).abs().max() > 1e-2
    # real pairs, pseudo-keys, tiles: the operator reports the last two
    assert product.tally.sums[1:] == pytest.approx(rule.tally.sums[1:], abs=1e-6)


@needs_piecewise
def test_enable_does_what_the_operator_does():
    """A model of one layer with random weights: the same velocity and the same counts."""
    scene = replace(SCENE, layers=1)
    torch.manual_seed(0)
    model = build_model(scene, CPU).eval()
    for name, parameter in model.named_parameters():
        sharp = name.endswith(("norm_q.weight", "norm_k.weight"))
        torch.nn.init.normal_(parameter, mean=2.0 if sharp else 0.0, std=0.1)
    frames, rows, columns = scene.grid
    x = torch.randn(1, frames, CHANNELS, 2 * rows, 2 * columns)
    text = torch.randn(1, scene.text, TEXT_SIZE)
    rest = torch.tensor([0.6]), text, rotary_of(scene, scene.grid, CPU)
    called = OperatorRule("called", 0.8, scene, "piecewise")
    enabled = EnabledRule("enabled", 0.8, scene, "piecewise")
    with torch.no_grad():
        dense = velocity(model, x, *rest)
        with Attending(called, scene.tokens) as mode:
            wanted = velocity(model, x, *rest)
        with enabled.installed(model):
            found = velocity(model, x, *rest)
        again = velocity(model, x, *rest)
    assert mode.calls == 1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)
    assert (wanted - dense).norm() > 1e-3 * dense.norm()
    assert enabled.tally.sums == pytest.approx(called.tally.sums)
    assert torch.equal(again, dense)  # and off again


def test_sampled_kinds_follow_the_smaller_error():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (2 * torch.randn(2, TINY.tokens, 16, generator=generator) for _ in range(3))
    place = torch.arange(TINY.free) % TINY.place
    frame = torch.arange(TINY.free) // TINY.place
    for head, code in enumerate((place, frame)):  # one looks at its place, one at its frame
        keys = 4 * torch.randn(int(code.max()) + 1, 16, generator=generator)[code]
        q[head, TINY.sinks :] = k[head, TINY.sinks :] = keys
    rule = SampledKindRule("svg", 0.7, TINY)
    rule(q, k, v)
    assert rule.tally.kinds == {"temporal": 1, "spatial": 1}


@pytest.mark.parametrize("wanted", [0.15, 0.4, 0.73])
@pytest.mark.parametrize("first", [0.1, 0.8])
def test_a_density_is_found(wanted, first):
    found = match(lambda s: 0.1 + 0.9 * (1 - s) ** 1.5, wanted, first)
    assert abs(found.density - wanted) <= TOLERANCE
    assert LEAST <= found.sparsity <= MOST


def test_the_nearest_of_coarse_steps_is_taken():
    """A checkerboard knows shares of 1/2, 1/3, 1/4 ... only."""
    found = match(lambda s: 1 / max(2, round(1 / (1 - s))), 0.3, 0.7)
    assert found.density == pytest.approx(1 / 3)
