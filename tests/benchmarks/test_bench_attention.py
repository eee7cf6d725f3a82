"""scripts/bench_attention.py up to the timing: cases, FlexAttention's lists, checks."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

from benchmarks.attention import baselines, flex, plan, timing
from benchmarks.attention.cases import CUDNN, FA3, FLEX, OURS, PLAN, Case, Lists, cases_of
from benchmarks.attention.check import sampled_rows
from benchmarks.attention.flex_lists import flex_lists
from benchmarks.attention.shapes import HEADS, SHAPES, Shape, inputs_of, kinds_of
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator import choice, reference
from rainfusion_trt.operator.geometry import BlockShape, Kind, band_of, block_shape
from rainfusion_trt.operator.plan import HeadPlan
from rainfusion_trt.operator.settings import AttentionSettings

CPU = torch.device("cpu")
SQUARE = BlockShape(128, 128)
SMALL = {
    "no text, short last block": Shape(1, 3, 96, (12, 5, 13), 0, "none"),
    "text first, short": Shape(2, 3, 16, (10, 8, 8), 70, "first"),
    "text last, two blocks": Shape(1, 3, 128, (9, 9, 13), 140, "last"),
}
small_shapes = pytest.mark.parametrize("shape", SMALL.values(), ids=SMALL)


def export_by_reference(q, k, layout, arguments) -> tuple[HeadPlan, torch.Tensor]:
    """`plan.export_plan` without the library: the reference's plan and block masks."""
    heads = reference.classify_heads(q, k, layout.grid, **arguments)
    names = ("text", "method", "alpha", "sink_frames")
    settings = AttentionSettings(**{name: arguments[name] for name in names})
    call = reference._start(q, layout.grid, arguments["sparsity"], settings)
    everything = reference.block_mask(layout, Kind.DENSE, 0, block_shape(q.shape[-1]))
    masks = [
        choice.choose(call, q[b, h], k[b, h], layout.tokens).mask
        for b, h in torch.cartesian_prod(*map(torch.arange, q.shape[:2])).tolist()
    ]
    kept = torch.stack([everything if mask is None else mask for mask in masks])
    return heads, kept.view(*q.shape[:2], *kept.shape[1:])


def attention_by_lists(q, k, v, block_mask: BlockMask) -> torch.Tensor:
    """Compute as FlexAttention's kernel does: full blocks whole, partial ones under the mask.

    Uncompiled, FlexAttention would not look at the lists.
    """
    table = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.bool)
    tokens = torch.arange(q.shape[2])
    lists = (
        (block_mask.full_kv_num_blocks, block_mask.full_kv_indices, lambda *_: torch.tensor(True)),
        (block_mask.kv_num_blocks, block_mask.kv_indices, block_mask.mask_mod),
    )
    for counts, indices, mask_mod in lists:
        for b, h, row in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
            for column in indices[b, h, row, : counts[b, h, row]].tolist():
                queries, keys = (tokens[128 * i : 128 * (i + 1)] for i in (row, column))
                kept = mask_mod(torch.tensor(b), torch.tensor(h), queries[:, None], keys)
                table[b, h, 128 * row : 128 * (row + 1), 128 * column : 128 * (column + 1)] |= kept
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=table)


@pytest.fixture
def on_cpu(monkeypatch):
    """Replace every part that needs a GPU by one that computes the same without it."""
    monkeypatch.setattr(plan, "export_plan", export_by_reference)
    monkeypatch.setattr(baselines, "plan_only", lambda *_: lambda: None)
    monkeypatch.setattr(baselines, "cudnn", torch.nn.functional.scaled_dot_product_attention)
    monkeypatch.setattr(flex, "compiled_flex", lambda: attention_by_lists)


def test_default_cases():
    cases = cases_of()
    assert len(cases) == len(set(cases))
    dense = Lists("mixed", 0.0)
    assert cases[:4] == [Case(name, dense) for name in (OURS, PLAN, CUDNN, FA3)]
    ours = [case.lists for case in cases if case.implementation == OURS]
    assert ours == [case.lists for case in cases if case.implementation == PLAN]
    assert {(x.heads, x.sparsity) for x in ours if x.sparsity} == {
        (heads, s)
        for heads in ("mixed", "spatial", "temporal", "textural")
        for s in (0.5, 0.64, 0.8, 0.9)
    }
    assert [x.density for x in ours if x.heads == "random"] == [0.1, 0.2, 0.35, 0.55]
    with_flex = [case.lists for case in cases if case.implementation == FLEX]
    assert set(with_flex) <= set(ours)
    assert {x.heads for x in with_flex} == {"spatial", "temporal", "random"}
    assert len(with_flex) == 2 * 2 + 4


def test_fewer_cases():
    cases = cases_of(heads=["random"], densities=[0.2], sparsities=[0.5], baselines=[CUDNN])
    random = Lists("random", density=0.2)
    assert cases == [
        Case(CUDNN, Lists("mixed", 0.0)),
        Case(OURS, random),
        Case(PLAN, random),
    ]


def check_flex(attention, shape, sink_frames) -> None:
    """Spatial, temporal and random lists against attention with a mask of token pairs."""
    layout = shape.layout(sink_frames)
    q, k, v = inputs_of(shape, "mixed", torch.float32, CPU)
    blocks = layout.blocks(flex.BLOCK)
    masks = [
        reference.block_mask(layout, kind, 100_000, SQUARE)
        for kind in (Kind.SPATIAL, Kind.TEMPORAL)
    ]
    masks.append(torch.rand(len(blocks), len(blocks)) < 0.3)
    masks[-1].fill_diagonal_(True)
    kept = torch.stack(masks).expand(shape.batch, -1, -1, -1)
    assert not kept[:, 0].all() and not kept[:, 2].all()
    grid = flex.BlockGrid(layout, CPU)
    mask = grid.block_mask(kept)
    out = attention(*(grid.pad(x) for x in (q, k, v)), block_mask=mask)
    lengths = torch.tensor([block.end - block.begin for block in blocks])
    pairs = kept.repeat_interleave(lengths, 2).repeat_interleave(lengths, 3)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=pairs)
    torch.testing.assert_close(out[:, :, grid.positions], wanted, atol=1e-5, rtol=1e-5)


@small_shapes
@pytest.mark.parametrize("sink_frames", [0, 1])
def test_flex_is_given_block_lists(shape, sink_frames):
    check_flex(attention_by_lists, shape, sink_frames)


@pytest.mark.rehearsal
def test_compiled_flex_computes_block_lists():
    attention = flex.compiled_flex()
    for sink_frames in (0, 1):  # other lists, the same kernel
        check_flex(attention, SMALL["text first, short"], sink_frames)


@small_shapes
def test_only_short_blocks_are_partial(shape):
    layout = shape.layout()
    blocks = layout.blocks(flex.BLOCK)
    short = [i for i, block in enumerate(blocks) if block.end - block.begin < 128]
    grid = flex.BlockGrid(layout, CPU)
    count = len(blocks)
    mask = grid.block_mask(torch.ones(1, 1, count, count, dtype=torch.bool))
    assert mask.seq_lengths == (128 * count, 128 * count)
    assert (mask.kv_num_blocks == len(short)).all()
    assert (mask.full_kv_num_blocks == count - len(short)).all()
    assert mask.kv_indices[0, 0, 0, : len(short)].tolist() == short
    full = mask.full_kv_indices[0, 0, 0, : count - len(short)].tolist()
    assert full == [i for i in range(count) if i not in short]


@small_shapes
@pytest.mark.parametrize("heads", ["spatial", "temporal", "random"])
def test_flex_lists_are_of_blocks_that_it_can_take(shape, heads):
    lists = Lists(heads, None if heads == "random" else 0.64, 0.7 if heads == "random" else None)
    layout = shape.layout(lists.sink_frames)
    q, k, _ = inputs_of(shape, heads, torch.float32, CPU)
    arguments = plan.arguments_of(layout, lists, 0.64)
    heads_plan, kept = export_by_reference(q, k, layout, arguments)
    density = heads_plan.density.mean().item()
    ours = plan.PlannedLists(0.64, heads_plan.kind, density, block_shape(shape.head_size), kept)
    assert kept.shape[2:] == tuple(len(layout.blocks(size)) for size in ours.shape)
    found = flex_lists(layout, ours)
    assert (found.sparsity, found.shape) == (ours.sparsity, SQUARE)
    assert torch.equal(found.kind, ours.kind)
    lengths = torch.tensor([b.end - b.begin for b in layout.blocks(128)])
    pairs = found.kept.repeat_interleave(lengths, 2).repeat_interleave(lengths, 3)
    assert pairs.shape[2:] == (layout.tokens, layout.tokens)
    assert found.density == pytest.approx(pairs.double().mean().item())
    if heads == "random":
        counts = found.kept.sum(-1)
        assert (counts == counts[0, 0, 0]).all()
        assert abs(found.density - density) < 0.1
        assert not torch.equal(found.kept[0, 0], found.kept[0, 1])
    else:
        wanted = reference.block_mask(layout, Kind[heads.upper()], band_of(0.64), SQUARE)
        assert torch.equal(found.kept, wanted.expand_as(found.kept))


@small_shapes
def test_every_case_passes_its_check(shape, on_cpu):
    """All implementations on all lists, against the reference's kernels."""
    cases = cases_of(densities=(0.6, 0.8), sparsities=(0.0, 0.5, 0.8), baselines=(CUDNN, FLEX))
    workload = baselines.Workload(shape, torch.float32, CPU)
    ready, left_out = timing.check_cases(workload, cases, lambda run: run)
    assert left_out == []
    assert [one.ready.case for one in ready] == cases
    for one in ready:
        case = one.ready.case
        assert (one.error is None) == (case.implementation == PLAN)
        if one.error is not None:
            assert one.error < 1e-5, case
        if case.lists.density is not None:
            assert abs(one.ready.lists.density - case.lists.density) < 0.1


def test_rows_carry_what_was_timed(on_cpu):
    shape = SMALL["text first, short"]
    lists = Lists("spatial", 0.5)
    workload = baselines.Workload(shape, torch.float32, CPU)
    mine = workload.ready_case(Case(OURS, lists))
    row = timing.row_of("small", shape, mine, 0.25, [3.0, 1.0, 2.0])
    assert (row["ms"], row["ms_min"], row["ms_max"], row["rounds"]) == (2.0, 1.0, 3.0, 3)
    assert (row["rival"], row["heads"], row["sparsity"]) == (OURS, "spatial", 0.5)
    assert 0 < row["density"] < 1
    work = 4 * 710**2 * 16 * 3 * 2 * mine.lists.density
    assert row["tflops"] == round(work / 2e-3 / 1e12, 1)
    assert row["relative_error"] == 0.25
    only_plan = timing.row_of("small", shape, workload.ready_case(Case(PLAN, lists)), None, [1.0])
    assert only_plan["density"] == only_plan["tflops"] == 0.0
    assert "relative_error" not in only_plan


def test_every_round_times_everything_in_an_order_of_its_own():
    orders = [timing.order_of(turn, 9) for turn in range(7)]
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len({tuple(order) for order in orders}) == 7
    assert timing.order_of(3, 9) == orders[3]


def test_wrong_rows_are_noticed(on_cpu, monkeypatch):
    shape = SMALL["text last, two blocks"]
    monkeypatch.setattr(baselines, "cudnn", lambda q, k, v: 1.05 * v)
    monkeypatch.setattr(baselines, "flash_attention_3", lambda *_: 1 / 0)
    workload = baselines.Workload(shape, torch.float32, CPU)
    dense = Lists("mixed", 0.0)
    cases = [Case(OURS, dense), Case(CUDNN, dense), Case(FA3, dense)]
    ready, left_out = timing.check_cases(workload, cases, lambda run: run)
    assert [one.ready.case.implementation for one in ready] == [OURS]
    assert left_out[0].startswith("wrong result of cudnn")
    assert "ZeroDivisionError" in left_out[1]

    monkeypatch.setattr(baselines, "rainfusion_attention", lambda q, k, v, *_, **__: v)
    with pytest.raises(SystemExit, match="wrong result: rainfusion"):
        timing.check_cases(
            baselines.Workload(shape, torch.float32, CPU), cases[:1], lambda run: run
        )


@pytest.mark.parametrize("heads", HEADS)
def test_sampled_rows_are_the_reference(heads):
    shape = SMALL["text last, two blocks"]
    lists = Lists(heads, None if heads == "random" else 0.64, 0.7 if heads == "random" else None)
    layout = shape.layout(lists.sink_frames)
    q, k, v = inputs_of(shape, heads, torch.float32, CPU)
    q *= math.sqrt(16 / shape.head_size)  # scores as large as at D = 16, for the bound on rounding
    s = 0.64
    arguments = plan.arguments_of(layout, lists, s)
    heads_plan, kept = export_by_reference(q, k, layout, arguments)
    found = plan.PlannedLists(s, heads_plan.kind, 0.5, block_shape(shape.head_size), kept)
    rows = sampled_rows(q, k, v, layout, found)
    out = reference.rainfusion_attention(q, k, v, layout.grid, **arguments)
    assert rows.error(out) < 1e-6
    assert {0, layout.tokens - 1, layout.free_begin} <= set(rows.rows.tolist())
    assert rows.error(1.02 * out) > 1e-2


def test_heads_of_another_kind_are_refused(monkeypatch):
    monkeypatch.setattr(plan, "export_plan", export_by_reference)
    shape = SMALL["no text, short last block"]
    q, k, _ = inputs_of(shape, "temporal", torch.float32, CPU)
    kinds = kinds_of(shape, "spatial")
    with pytest.raises(InvalidInputError, match="ALPHA"):
        plan.planned(q, k, shape.layout(), Lists("spatial", 0.5), kinds)


@pytest.mark.parametrize("density", [0.1, 0.35, 0.9])
def test_sparsity_for_a_density(density):
    def density_of(s):
        return 0.05 + 0.95 * (1 - s)

    assert abs(density_of(plan.sparsity_for(density, density_of)) - density) < 1e-4


def test_a_density_below_what_is_always_kept():
    with pytest.raises(InvalidInputError, match="always kept, 0.2"):
        plan.sparsity_for(0.1, lambda s: 0.2)


def test_full_size_shapes():
    """Tokens of the models' standard sizes, as in the contract of the benchmark."""
    tokens = {name: shape.layout().tokens for name, shape in SHAPES.items()}
    assert tokens == {
        "cogvideox-5b": 17776,
        "opensoraplan-720p": 86400,
        "hunyuanvideo-720p": 119056,
        "wan2.1-14b-480p": 32760,
        "wan2.1-14b-720p": 75600,
    }
