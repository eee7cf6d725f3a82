"""Rules against loops, against dense attention, and counts by hand."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.film.catalogue import Catalogue
from benchmarks.film.evaluate import dense_attention
from benchmarks.film.kinds import KindRule
from benchmarks.film.rules import WindowRule, budget, choose_layer, choose_mass, choose_rows
from benchmarks.film.scene import TINY
from benchmarks.film.scores import Heads, covariance_scores, mass_scores, place_scores
from benchmarks.film.windows import PARTS, boxes, runs, sharing, sub_shape
from helpers.film_reference import attention

GRID, SINKS = TINY.free_grid, TINY.sinks
CPU = torch.device("cpu")


def heads_of(seed=0, count=2, size=16):
    generator = torch.Generator().manual_seed(seed)
    return [2.0 * torch.randn(count, TINY.tokens, size, generator=generator) for _ in range(3)]


def rule_of(sparsity, score="mean", rest="drop", spread="row", shape="cube"):
    cut = Catalogue(TINY, CPU).cut(shape)
    return WindowRule("rule", sparsity, TINY, *cut, score, rest, spread)


@pytest.mark.parametrize("rest", ["drop", "means", "first"])
@pytest.mark.parametrize("score", ["mean", "sub"])
@pytest.mark.parametrize("sparsity", [0.8, 0.5])
def test_boxes_agree_with_loops(sparsity, score, rest):
    shapes = TINY.shapes["cube"]
    smalls = tuple(sub_shape(shape) for shape in shapes)
    q, k, v = heads_of()
    found = rule_of(sparsity, score, rest)(q, k, v)
    for head in range(2):
        arrays = (x[head].double().numpy() for x in (q, k, v))
        wanted = attention(*arrays, SINKS, GRID, shapes, smalls, sparsity, score, rest)
        torch.testing.assert_close(
            found[head].double(), torch.from_numpy(wanted), atol=2e-5, rtol=0
        )


@pytest.mark.parametrize("rest", ["means", "first"])
def test_what_is_not_kept_matters(rest):
    """The loops would not notice a rest that is ignored by both: outputs must differ."""
    q, k, v = heads_of()
    dropped, other = rule_of(0.8)(q, k, v), rule_of(0.8, rest=rest)(q, k, v)
    assert (dropped - other)[:, SINKS:].abs().max() > 0.05
    assert torch.equal(dropped[:, :SINKS], other[:, :SINKS])


def test_everything_kept_is_dense_attention_in_every_rule():
    q, k, v = heads_of()
    dense = dense_attention(q, k, v)
    entries = list(Catalogue(TINY, CPU).of_sparsity(0.0))
    assert len(entries) > 20
    checked = 0
    for entry in entries:
        rule = entry.make()
        out = rule(q, k, v)
        if isinstance(rule, KindRule) and rule.tally.kinds.get("textural"):
            assert not torch.allclose(out, dense, atol=1e-2)  # a checkerboard is never everything
            continue
        torch.testing.assert_close(out, dense, atol=1e-5, rtol=0, msg=entry.name)
        assert rule.tally.sums[0] == pytest.approx(1), entry.name
        checked += 1
    assert checked >= len(entries) - 4


def test_every_sparse_rule_differs_from_dense_and_keeps_sink_rows():
    q, k, v = heads_of()
    dense = dense_attention(q, k, v)
    for entry in Catalogue(TINY, CPU).of_sparsity(0.8):
        out = entry.make()(q, k, v)
        torch.testing.assert_close(out[:, :SINKS], dense[:, :SINKS], atol=1e-5, rtol=0)
        assert (out - dense)[:, SINKS:].abs().max() > 1e-2, entry.name


def test_names_are_unique():
    pairs = [(e.name, e.sparsity) for e in Catalogue(TINY, CPU).entries()]
    assert len(set(pairs)) == len(pairs)


def test_means_of_equal_keys_are_exact():
    """If all keys and values of a window are equal, the approximation is exact."""
    q, k, v = heads_of()
    _, keys = Catalogue(TINY, CPU).cut("cube")
    for x in (k, v):
        means = keys.means(x[:, SINKS:])[:, :, None].expand(-1, -1, keys.size, -1)
        x[:, SINKS:] = keys.scatter(means.contiguous())
    dense = dense_attention(q, k, v)
    for rest in ("means", "first"):
        torch.testing.assert_close(rule_of(0.8, rest=rest)(q, k, v), dense, atol=1e-4, rtol=0)


def test_means_are_rounded_to_the_type():
    q, k, v = (x.bfloat16() for x in heads_of())
    rule = rule_of(0.8, rest="means")
    heads = Heads(q.float(), k.float(), v.float(), SINKS)
    kept = rule.choose(rule.scores(heads))
    exact = rule.run(heads, kept, torch.float32)
    assert rule(q, k, v).dtype == torch.bfloat16
    rounded = rule.run(heads, kept, torch.bfloat16)
    assert not torch.equal(rounded, exact.bfloat16())


@pytest.mark.parametrize(
    ("windows", "sparsity", "keep"),
    [(90, 0.8, 18), (90, 0.9, 9), (90, 0.64, 33), (100, 0.64, 36), (96, 0.8, 20), (10, 0.99, 1)],
)
def test_budget(windows, sparsity, keep):
    assert budget(windows, sparsity) == keep


def test_ties_go_to_the_lower_index():
    assert choose_rows(torch.zeros(1, 2, 50), 3).nonzero()[:, 2].tolist() == [0, 1, 2, 0, 1, 2]


def test_a_layer_shares_its_budget():
    peaked = torch.tensor([9.0, 1.0, -9.0, -9.0])
    flat = torch.tensor([1.0, 0.9, 0.8, 0.7])
    kept = choose_layer(torch.stack([peaked, flat])[None], 2)
    assert kept.sum() == 4
    assert kept[0].tolist() == [[True, False, False, False], [True, True, True, False]]


def test_a_share_of_mass_takes_as_many_as_it_needs():
    rows = torch.tensor([[0.6, 0.3, 0.05, 0.05], [0.1, 0.2, 0.3, 0.4]]).log()[None]
    assert choose_mass(rows, 0.65, 1)[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert choose_mass(rows, 0.5, 1)[0].int().tolist() == [[1, 0, 0, 0], [0, 0, 1, 1]]
    assert choose_mass(rows, 0.01, 2)[0].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert choose_mass(rows, 1.1, 1).all()


def finer_rule(finer):
    cut = Catalogue(TINY, CPU).cut("cube")
    return WindowRule("rule", 0.8, TINY, *cut, "mean", "means", finer=finer)


def test_parts_of_the_next_best_are_known_by_their_means():
    """Where keys and values are equal within the parts, and all left out are parted: exact."""
    q, k, v = heads_of()
    _, keys = Catalogue(TINY, CPU).cut("cube")
    for x in (k, v):
        means = keys.means(x[:, SINKS:], PARTS).unflatten(1, (keys.count, PARTS))
        x[:, SINKS:] = keys.scatter(means.repeat_interleave(keys.size // PARTS, 2).contiguous())
    dense = dense_attention(q, k, v)
    torch.testing.assert_close(finer_rule(4.0)(q, k, v), dense, atol=1e-4, rtol=0)
    errors = [(finer_rule(f)(q, k, v) - dense).norm() for f in (0.0, 1.0, 2.0)]
    assert errors[0] > 1.05 * errors[1] > 1.05 * errors[2] > 0


def test_what_parts_cost_by_hand():
    q, k, v = heads_of()
    plain, finer = finer_rule(0.0), finer_rule(1.0)
    plain(q, k, v)
    finer(q, k, v)
    assert finer.tally.sums[0] == plain.tally.sums[0]
    rows, number = finer.queries.count, budget(finer.keys.count, 0.8)
    more = rows * number * (PARTS - 1) * finer.queries.size / TINY.tokens**2
    assert finer.tally.sums[1] - plain.tally.sums[1] == pytest.approx(more)
    height, width = TINY.tile
    dense = -(-TINY.tokens // height) * -(-TINY.tokens // width)
    tiles = rows * -(-finer.queries.size // height) * math.ceil(number * PARTS / width)
    assert finer.tally.sums[2] - plain.tally.sums[2] == pytest.approx(tiles / dense)
    with pytest.raises(ValueError, match="rest is drop"):
        replace(finer, rest="drop")(q, k, v)


def test_densities_and_tiles_by_hand():
    """Raster blocks 24 x 16 of 192 tokens, 12 key blocks; sinks: 16 of text and 48."""
    rule = rule_of(0.8, score="near", rest="means", shape="raster")
    q, k, v = heads_of()
    rule(q, k, v)
    real, everything, tiles, calls = rule.tally.sums
    kept = rule.choose(rule.scores(Heads(q, k, v, SINKS)))
    pairs = int(kept[0].sum())
    assert 8 * 3 <= pairs <= 8 * 5  # ceil(12 * .2) = 3 a row, and the two shared ones
    total = 256 * 256
    assert calls == 1
    assert real == pytest.approx((pairs * 24 * 16 + 64 * 256 + 192 * 64) / total)
    assert everything == pytest.approx(real + (8 * 12 - pairs) * 24 / total)
    # 4 tiles of sink keys and one of pseudo-keys a row; sink rows: 3 x 16 tiles; dense: 11 x 16
    assert tiles == pytest.approx((pairs + 8 * (4 + 1) + 3 * 16) / (11 * 16))


def test_true_mass_is_that_of_dense_attention():
    q, k, v = heads_of()
    queries, keys = boxes(GRID, (2, 3, 4)), boxes(GRID, (2, 2, 4))
    weights = torch.softmax(q @ k.transpose(1, 2) / 4, -1)[:, SINKS:, SINKS:]
    mass = mass_scores(Heads(q, k, v, SINKS), queries, keys).exp()
    block = weights[1][queries.tokens[3]][:, keys.tokens[5]]
    assert mass[1, 3, 5] == pytest.approx(float(block.sum(1).mean()), rel=1e-4)


def test_covariance_prefers_windows_that_vary():
    q, k, v = heads_of()
    queries, keys = boxes(GRID, (2, 3, 4)), boxes(GRID, (2, 2, 4))
    heads = Heads(q, k, v, SINKS)
    before = covariance_scores(heads, queries, keys)
    window = k[0, SINKS:][keys.tokens[5]]
    k[0, SINKS + keys.tokens[5]] = window.mean(0) + 10 * (window - window.mean(0))
    change = covariance_scores(heads, queries, keys) - before
    torch.testing.assert_close(change[0, :, 5], torch.full((8,), math.log(10)), atol=1e-3, rtol=0)
    change[0, :, 5] = 0
    assert change.abs().max() < 1e-4


def test_place_prefers_the_same_place_in_other_frames():
    windows = boxes((4, 6, 8), (1, 1, 4))
    scores = place_scores(Heads(*heads_of(), SINKS), windows, windows)[0, 0]
    assert sorted(scores.topk(4).indices.tolist()) == [0, 12, 24, 36]  # twelve a frame


def test_shape_of_a_head_follows_its_keys():
    """Keys that depend on the place alone suit windows that are long in time."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = heads_of(count=1)
    code = 3 * torch.randn(48, 16, generator=generator)
    q[:, SINKS:] = k[:, SINKS:] = code.repeat(4, 1)
    entry = next(e for e in Catalogue(TINY, CPU).of_sparsity(0.8) if e.name.startswith("shape"))
    rule = entry.make()
    rule(q, k, v)
    assert rule.tally.kinds == {"long": 1}


def test_shared_windows_are_always_kept():
    rule = rule_of(0.9, score="random")
    kept = rule.choose(rule.scores(Heads(*heads_of(), SINKS)))
    assert kept[:, sharing(rule.queries, rule.keys)].all()


def test_raster_rule_is_that_of_the_operator():
    """RainFusion2 here and the package's own, where blocks fall on the edge of the sinks.

    The operator lets sink blocks compete for the budget too, so here they score low; 3 of its 15
    key blocks are 3 of our 12.
    """
    from rainfusion_trt.operator.reference import rainfusion_attention

    grid = (5, 16, 24)
    scene = replace(TINY, grid=grid, tile=(192, 128), text=0)
    generator = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, scene.tokens, 64, generator=generator) for _ in range(3))
    q[:, scene.sinks :, 0] = 4
    k[:, : scene.sinks, 0] = -8
    rule = WindowRule("r", 0.8, scene, runs(scene.free_grid, 192), runs(scene.free_grid, 128))
    options = {"sparsity": 0.8, "method": "rainfusion2", "text": "none", "sink_frames": 1}
    wanted = rainfusion_attention(q[None], k[None], v[None], grid, **options)[0]
    torch.testing.assert_close(rule(q, k, v), wanted, atol=1e-4, rtol=0)
