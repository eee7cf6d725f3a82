"""What 8 bits change on the film model, on a tiny grid with heads of their size."""

from dataclasses import replace

import pytest
import torch

from benchmarks.fidelity.film import bits
from benchmarks.film.evaluate import dense_attention
from benchmarks.film.product import OperatorRule
from benchmarks.film.scene import FULL

SCENE = replace(FULL, grid=(5, 12, 16), heads=2, layers=3)


def inputs():
    generator = torch.Generator().manual_seed(0)
    shape = (2, SCENE.tokens, SCENE.head_size)
    return (torch.randn(shape, generator=generator).bfloat16().float() for _ in range(3))


def test_8_bits_cost_what_their_formats_do_and_16_nothing():
    q, k, v = inputs()
    wanted = dense_attention(q, k, v)
    errors = {}
    for precision in ("16bit", "8bit"):
        rule = OperatorRule("rule", 0.0, SCENE, "piecewise", precision=precision)
        errors[precision] = ((rule(q, k, v) - wanted).norm() / wanted.norm()).item()
    assert errors["16bit"] < 1e-5
    assert 0.02 < errors["8bit"] < 0.05


def test_tiles_of_8_bits_are_counted_as_their_own():
    q, k, v = inputs()
    rules = [
        OperatorRule("rule", 0.0, SCENE, "piecewise", precision=precision)
        for precision in ("16bit", "8bit")
    ]
    for rule in rules:
        rule(q, k, v)
        assert rule.tally.sums[2] == pytest.approx(1.0)


def test_shares_are_of_piecewise_in_16_bits():
    def row(source, rule, error):
        return {"source": source, "rule": rule, "velocity": {"mean": error}}

    rows = [row("film", "dense, 8 bits", 0.01), row("film", "piecewise", 0.1)]
    rows += [{"source": "film", "rule": "piecewise, 8 bits", "not_run": "why"}]
    rows += [row("clips", "dense, 8 bits", 0.01)]  # out of time
    assert bits.shares(rows) == {"film": {"dense, 8 bits": pytest.approx(0.1), "piecewise": 1.0}}


def test_calls_are_kept_as_they_came():
    keeping = bits._Keeping([0, 2])
    calls = [tuple(inputs()) for _ in range(3)]
    for call in calls:
        torch.testing.assert_close(keeping(*call), dense_attention(*call))
    assert list(keeping.kept) == ["layer0", "layer2"]
    assert torch.equal(keeping.kept["layer2"][1][0], calls[2][1])


def test_another_implementation_gets_bfloat16_and_a_batch():
    class Peer:
        name = "sage2"

        @staticmethod
        def attention(q, k, v):
            assert q.dtype == torch.bfloat16 and q.ndim == 4
            return v

    rule = bits.PeerRule("dense, sage2", Peer())
    q, k, v = inputs()
    assert torch.equal(rule(q, k, v), v) and rule.tally.sums[3] == 1.0
