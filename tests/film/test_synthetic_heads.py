"""Made-up heads come to the shares asked for; their rules agree with the operator."""

import lzma
import math

import pytest
import torch

pytest.importorskip("rainfusion_trt.operator.windows")

from benchmarks.fidelity.synthetic.attend import DenseRows, attend_rows
from benchmarks.fidelity.synthetic.cuts import boxes, runs
from benchmarks.fidelity.synthetic.heads import Recipe, make_head
from benchmarks.fidelity.synthetic.measure import (
    Member,
    Setting,
    choose_in_pools,
    cuts_of,
    populate,
    summary,
    target_densities,
)
from benchmarks.fidelity.synthetic.profiles import Group, pick_groups, profile_paths, read_profile
from benchmarks.fidelity.synthetic.rules import RULES, density, rows_of
from benchmarks.film.coverage import keys_for
from rainfusion_trt import classify_heads, rainfusion_attention

CPU = torch.device("cpu")
SETTING = Setting((5, 9, 14), 7, 64, 2, 2, 40, (0.7,), 0)  # ragged at every edge
LAYOUT = SETTING.layout
CSV = "Step,Layer,Head,Sparsity\n" + "".join(
    f"{s},{layer},{h},{0.1 * s + 0.01 * layer + 0.001 * h:.4f}\n"
    for s in (1, 2)
    for layer in (0, 1)
    for h in (1, 0)
)


def head_of(share, seed=0, lengths=(4.0, 2.0, 3.0)):
    return make_head(Recipe(share, lengths, seed), LAYOUT, 64, CPU, torch.float32)


def test_profiles_are_read(tmp_path):
    with lzma.open(tmp_path / "a.csv.xz", "wt") as file:
        file.write(CSV)
    (tmp_path / "b.csv").write_text("Step,Layer,Head,Share\n1,0,0,0.5\n")
    paths = profile_paths(tmp_path)
    groups = read_profile(paths[0])
    assert [(g.step, g.layer) for g in groups] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert groups[3].shares == (0.21, 0.211)
    picked = pick_groups(groups, 2, 1, seed=0)
    assert len(picked) == 2
    assert all(len(g.shares) == 1 for g in picked)
    with pytest.raises(ValueError, match=r"b\.csv has the columns"):
        read_profile(paths[1])


@pytest.mark.parametrize("share", [0.02, 0.2, 0.8])
def test_heads_need_the_keys_asked_for(share):
    head = head_of(share)
    assert head.share == pytest.approx(share, abs=0.01)
    rows = torch.arange(LAYOUT.sinks, LAYOUT.tokens, 5)
    weights = torch.softmax(head.q[rows] @ head.k.T / 8, -1)
    # other rows than those of the search; heads of this size differ from row to row
    assert float(keys_for(weights, 0.95).mean()) == pytest.approx(share, rel=0.3, abs=0.01)


@pytest.mark.parametrize("s", [0.5, 0.8])
def test_piecewise_is_that_of_the_operator(s):
    head = head_of(0.3)
    rows = torch.arange(LAYOUT.free)
    cut = cuts_of(SETTING, CPU)["windows"]
    member = Member(0, head, rows)
    found = rows_of(head, LAYOUT, cut, rows, "mean", 0)
    kept = (found.ranks() < math.ceil(round(cut.keys.count * (1 - s), 6))) | found.shared
    dense = DenseRows.of(head, LAYOUT, rows)
    out = attend_rows(head, LAYOUT, cut, dense, kept, "means")

    q, k, v = (x[None, None] for x in (head.q, head.k, head.v))
    options = {"sparsity": s, "method": "piecewise", "text": "first", "sink_frames": 1}
    wanted = rainfusion_attention(q, k, v, LAYOUT.grid, **options)[0, 0, LAYOUT.sinks :]
    torch.testing.assert_close(out, wanted, atol=1e-4, rtol=0)
    assert (out - dense.out).abs().max() > 1e-2
    plan = classify_heads(q, k, LAYOUT.grid, **options)
    assert density(LAYOUT, cut, kept, "means") == pytest.approx(float(plan.density), abs=1e-5)
    setting = Setting(**{**SETTING.__dict__, "sparsities": (s,)})
    target = target_densities([member], setting, cut)[s]
    assert target == pytest.approx(float(plan.density), abs=1e-5)


def test_first_order_is_exact_where_scores_hardly_differ():
    """To first order in the scores: an error of second order, so a quarter at half of them."""
    head = head_of(0.9)
    rows = torch.arange(0, LAYOUT.free, 7)
    cut = cuts_of(SETTING, CPU)["raster"]
    kept = torch.zeros(len(rows), cut.keys.count, dtype=torch.bool)
    errors = {}
    for scale in (0.02, 0.01):
        small = type(head)(scale * head.q, head.k, head.v, head.share)
        dense = DenseRows.of(small, LAYOUT, rows)
        for rest in ("means", "first"):
            out = attend_rows(small, LAYOUT, cut, dense, kept, rest)
            errors[rest, scale] = dense.error(out)[0] ** 0.5
    assert errors["first", 0.02] < 0.5 * errors["means", 0.02]
    assert errors["means", 0.01] / errors["means", 0.02] == pytest.approx(0.5, rel=0.1)
    assert errors["first", 0.01] / errors["first", 0.02] < 0.45


def test_all_rules_come_to_the_density():
    setting = Setting((9, 12, 20), 16, 128, 2, 2, 40, (0.7,), 0)
    layout, cuts, wanted = setting.layout, cuts_of(setting, CPU), 0.5
    groups = [Group(1, 0, (0.02, 0.5)), Group(1, 1, (0.1, 0.9))]
    members = populate(groups, setting, CPU)
    assert [m.group for m in members] == [0, 0, 1, 1]
    kept_shares = {}
    for rule in RULES:
        cut = cuts[rule.cut]
        rows = [rows_of(m.head, layout, cut, m.rows, rule.score, 3) for m in members]
        kept, found = choose_in_pools(members, rows, setting, cut, rule, wanted)
        step = (layout.free / layout.tokens) ** 2 / cut.keys.count
        assert found == pytest.approx(wanted, abs=0.6 * step), rule.name
        densities = [density(layout, cut, k, rule.rest) for k in kept]
        assert sum(densities) / 4 == pytest.approx(found), rule.name
        assert all((k | r.shared).equal(k) for k, r in zip(kept, rows, strict=True)), rule.name
        kept_shares[rule.name] = [float(k.float().mean()) for k in kept]
    rank, threshold = (
        kept_shares[name] for name in ("piecewise", "windows, means, one threshold for all layers")
    )
    assert threshold[0] < rank[0]  # the head that needs least gives to those that need more
    assert threshold[3] > rank[3]


def test_cuts_hold_every_token_once():
    for windows in (boxes(LAYOUT, (3, 4, 5), CPU), runs(LAYOUT, 50, CPU)):
        assert windows.sizes.sum() == LAYOUT.free
        assert windows.sizes.min() > 0
    windows = boxes(LAYOUT, (3, 4, 5), CPU)
    assert windows.count == 2 * 3 * 3
    assert windows.sizes[0] == 60
    assert windows.sizes[-1] == 1 * 1 * 4
    x = torch.randn(LAYOUT.free, 8)
    place = windows.window_of == 4
    torch.testing.assert_close(windows.means(x)[4], x[place].mean(0))


def test_summary_by_hand():
    found = summary([(0.01, 1.0), (0.09, 1.0), (0.16, 4.0)], [0.005, 0.03, 0.04])
    assert found["error"] == pytest.approx((0.1 + 0.3 + 0.2) / 3)
    assert found["stderr"] == pytest.approx(0.1 / math.sqrt(3))
    assert found["pooled"] == pytest.approx(math.sqrt(0.26 / 6))
    assert found["by_share"] == {
        "0.01": [pytest.approx(0.1), 1],
        "0.05": [pytest.approx(0.25), 2],
        "0.2": [None, 0],
        "1": [None, 0],
    }
