"""Masks, rules and metrics of the fidelity study."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from benchmarks.fidelity import masks
from benchmarks.fidelity.choice import Choice
from benchmarks.fidelity.configs import BASELINES, CONTRACT, Config, configs_of, study_configs
from benchmarks.fidelity.rules import SampledError, rule_for
from rainfusion_trt import classify_heads, rainfusion_attention
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import BlockShape, Kind, TokenLayout, band_of, block_shape
from rainfusion_trt.testing import synthetic_heads

GRID = (5, 10, 16)  # frames of a key block and a quarter
LAYOUT = TokenLayout(GRID, 5 * 160 + 16, "first", 1)
SHAPE = block_shape(16)
CPU = torch.device("cpu")
KINDS = (Kind.SPATIAL, Kind.TEMPORAL, Kind.TEXTURAL)
MASKED = [method for method in CONTRACT if method != "textural blocks"]


@pytest.fixture(scope="module")
def heads():
    return synthetic_heads(LAYOUT, [KINDS, KINDS[::-1]], 16)


class TestMasks:
    @pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.64])
    def test_kinds_are_those_the_operator_computes(self, heads, sparsity):
        q, k, v = heads
        arguments = {"text": "first", "sparsity": sparsity, "method": "rainfusion"}
        plan = classify_heads(q, k, GRID, **arguments)
        assert set(plan.kind.flatten().tolist()) == set(KINDS)
        all_masks = {int(kind): masks.kind_mask(LAYOUT, SHAPE, kind, sparsity) for kind in KINDS}
        choice = Choice(plan.kind, all_masks)
        wanted = rainfusion_attention(q, k, v, GRID, **arguments)
        torch.testing.assert_close(choice.attend(q, k, v), wanted, rtol=1e-4, atol=1e-5)
        shares = {code: masks.density(mask) for code, mask in all_masks.items()}
        torch.testing.assert_close(choice.density(shares), plan.density)

    @pytest.mark.parametrize("kind", KINDS[:2])
    def test_half_of_the_pairs_is_the_operators_rule(self, kind):
        band = band_of(0.5)
        half = masks.share_mask(LAYOUT, SHAPE, kind, band, 0.5)
        assert torch.equal(half, masks.kind_mask(LAYOUT, SHAPE, kind, 0.5))
        pairs = masks.pairs_mask(LAYOUT, kind, band)
        any_pair = masks.share_mask(LAYOUT, SHAPE, kind, band, 0.0)
        assert (any_pair >= pairs).all()
        assert (any_pair >= half).all()
        assert masks.density(any_pair) > masks.density(half)

    @pytest.mark.parametrize("shape", [SHAPE, BlockShape(128, 128)])
    def test_place_major_blocks_of_temporal_heads(self, shape):
        order = masks.place_major_order(LAYOUT)
        assert sorted(order.tolist()) == list(range(LAYOUT.tokens))
        assert order[LAYOUT.free_begin : LAYOUT.free_begin + 6].tolist() == [
            LAYOUT.free_begin + offset for offset in (0, 160, 320, 480, 1, 161)
        ]
        # Temporal in place-major order is what spatial is in the raster: a band.
        temporal = masks.share_mask(
            LAYOUT, shape, Kind.TEMPORAL, band_of(0.5), 0.5, place_major=True
        )
        spatial = masks.share_mask(LAYOUT, shape, Kind.SPATIAL, band_of(0.5), 0.5)
        assert masks.density(temporal) == pytest.approx(masks.density(spatial), abs=0.03)
        ordered = temporal[order][:, order]
        first = next(block.begin for block in LAYOUT.blocks(shape.k) if not block.sink)
        edges = ordered[:, first:].int().diff(dim=1)
        assert (edges.abs().sum(1) <= 2).all()  # one run of keys
        assert (edges != 0).any()
        if shape.q == shape.k:
            assert torch.equal(ordered, ordered.T)

    @pytest.mark.parametrize("share", [0.75, 0.85])
    def test_baselines_reach_the_share_asked_for(self, share):
        block = math.prod(SHAPE) / LAYOUT.tokens**2
        generator = torch.Generator().manual_seed(0)
        drawn = [masks.random_mask(LAYOUT, SHAPE, share, generator) for _ in range(2)]
        assert not torch.equal(*drawn)
        assert masks.density(drawn[0]) == pytest.approx(share, abs=block)
        assert masks.density(masks.window_of_share(LAYOUT, share)) == pytest.approx(share, abs=3e-3)
        bare = masks.window_of_share(masks.without_sink_frames(LAYOUT), share)
        assert masks.density(bare) == pytest.approx(share, abs=3e-3)
        assert not bare[LAYOUT.free_begin - 1].all()  # the first frame is no sink there
        assert bare[0].all()  # text is

    @pytest.mark.parametrize("kind", KINDS[:2])
    def test_no_band_comes_nearer_to_the_share(self, kind):
        found = masks.density(masks.kind_of_share(LAYOUT, SHAPE, kind, 0.8))
        for band in range(20_000, 1_000_000, 70_000):
            other = masks.share_mask(
                LAYOUT, SHAPE, kind, band, 0.5, place_major=kind is Kind.TEMPORAL
            )
            assert abs(found - 0.8) <= abs(masks.density(other) - 0.8)

    def test_sinks_and_shared_blocks_are_never_dropped(self):
        least = masks.random_mask(LAYOUT, SHAPE, 0.0, torch.Generator().manual_seed(0))
        sink = LAYOUT.is_sink()
        assert least[sink].all()
        assert least[:, sink].all()
        assert least.diagonal().all()
        assert masks.density(least) < 1


class TestRules:
    def test_svg_takes_the_mask_nearer_to_dense(self, heads):
        q, k, v = heads
        generator = torch.Generator().manual_seed(0)
        two = {int(kind): masks.pairs_mask(LAYOUT, kind, band_of(0.5)) for kind in KINDS[:2]}
        choice, density = SampledError(two, generator).choose(q, k, v)
        assert choice.code[0, 0] == Kind.SPATIAL
        assert choice.code[0, 1] == Kind.TEMPORAL
        assert choice.code[1, 2] == Kind.SPATIAL
        assert density[0, 0].item() == pytest.approx(masks.density(two[Kind.SPATIAL]))
        dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        got = choice.attend(q, k, v)
        for b, h in ((0, 0), (0, 1)):
            other = Kind.SPATIAL + Kind.TEMPORAL - int(choice.code[b, h])
            wrong = torch.full_like(choice.code, other)
            worse = Choice(wrong, two).attend(q, k, v)[b, h]
            assert (got[b, h] - dense[b, h]).norm() < 0.5 * (worse - dense[b, h]).norm()

    def test_textural_heads_by_blocks(self, heads):
        q, k, v = heads
        config = Config("contract", "textural blocks", 0.5, alpha=0.98)
        choice, density = rule_for(config, LAYOUT, SHAPE, None, CPU).choose(q, k, v)
        textural = choice.code == Kind.TEXTURAL
        assert 0 < textural.sum() < textural.numel()
        out = choice.attend(q, k, v)
        for method, mine in (("rainfusion", ~textural), ("rainfusion2", textural)):
            same = {"text": LAYOUT.text, "method": method, "alpha": 0.98}
            alone = rainfusion_attention(q, k, v, LAYOUT.grid, **same)
            torch.testing.assert_close(out[mine], alone[mine], rtol=0, atol=0)
            plan = classify_heads(q, k, LAYOUT.grid, **same)
            torch.testing.assert_close(density[mine], plan.density[mine], rtol=0, atol=0)

    def test_a_shifted_checkerboard_leaves_no_place_out(self):
        mask = masks.shifted_textural_mask(LAYOUT, SHAPE, 0.5)
        free = slice(LAYOUT.free_begin, LAYOUT.free_begin + LAYOUT.free_tokens)
        row = next(block.begin for block in LAYOUT.blocks(SHAPE.q) if not block.sink)
        keys = mask[row, free].view(LAYOUT.free_frames, LAYOUT.frame)
        assert (keys[0] != keys[1]).all()
        assert keys.sum() == pytest.approx(LAYOUT.free_tokens / 2, abs=LAYOUT.free_frames)
        plain = masks.kind_mask(LAYOUT, SHAPE, Kind.TEXTURAL, 0.5)
        assert torch.equal(plain[row, free].view_as(keys)[0], keys[0])

    @pytest.mark.parametrize("method", ["spatial only", "textural dense", *MASKED, *BASELINES])
    def test_density_is_that_of_the_masks(self, heads, method):
        q, k, v = heads
        rule = rule_for(Config("", method, 0.5), LAYOUT, SHAPE, 0.7, CPU)
        choice, density = rule.choose(q, k, v)
        codes = choice.code.flatten().tolist()
        wanted = [masks.density(choice.masks[code]) for code in codes]
        assert density.flatten().tolist() == pytest.approx(wanted)
        assert choice.attend(q, k, v).isfinite().all()

    def test_a_baseline_needs_its_density(self):
        with pytest.raises(InvalidInputError, match="density it is to match"):
            rule_for(Config("baselines", "window", 0.5), LAYOUT, SHAPE, None, CPU)

    def test_configurations(self):
        configs = study_configs()
        assert len(configs) == len({config.name for config in configs})
        for sparsity in (0.3, 0.5, 0.64, 0.8):
            # What baselines match comes before them.
            first = configs.index(Config("methods", "rainfusion", sparsity))
            assert all(
                first < configs.index(Config("baselines", method, sparsity)) for method in BASELINES
            )
        grid = [config for config in configs if config.group == "methods"]
        assert len(grid) == 4 * 4 * 2 * 3

    def test_some_groups(self):
        chosen = configs_of((0.5,), ["baselines"])
        assert chosen[0] == Config("methods", "rainfusion", 0.5)
        assert [config.method for config in chosen[1:]] == list(BASELINES)
        with pytest.raises(InvalidInputError, match="'rivals' is not one of control, methods"):
            configs_of((0.5,), ["rivals"])
        with pytest.raises(InvalidInputError, match=r"sparsity=1.0 must be in \(0, 1\)"):
            configs_of((1.0,), [])


class TestMetrics:
    @pytest.fixture
    def videos(self):
        pytest.importorskip("skimage")
        generator = np.random.default_rng(0)
        a = generator.integers(0, 256, (3, 16, 24, 3)).astype(np.uint8)
        noise = generator.integers(-9, 10, a.shape)
        return a, (a.astype(int) + noise).clip(0, 255).astype(np.uint8)

    def test_psnr_by_its_definition(self, videos):
        from benchmarks.fidelity.metrics import SAME, video_psnr

        a, b = videos
        error = np.mean((a.astype(float) - b.astype(float)) ** 2)
        assert video_psnr(a, b) == pytest.approx(10 * np.log10(255**2 / error))
        assert video_psnr(a, a) == SAME

    def test_ssim_by_its_definition(self, videos):
        from benchmarks.fidelity.metrics import video_ssim

        a, b = videos
        wanted = np.mean([ssim_by_definition(x, y) for x, y in zip(a, b, strict=True)])
        assert video_ssim(a, b) == pytest.approx(wanted, abs=1e-9)
        # Repeated frames, as the codec makes them, weigh as often as they come.
        again = [0, 0, 0, 1, 2]
        ssim = [video_ssim(a[i : i + 1], b[i : i + 1]) for i in range(3)]
        assert video_ssim(a[again], b[again]) == pytest.approx(
            (3 * ssim[0] + ssim[1] + ssim[2]) / 5
        )


def ssim_by_definition(a: np.ndarray, b: np.ndarray) -> float:
    """Mean over the inner pixels of 7 x 7 windows and over channels, unbiased covariances."""
    one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    views = [
        np.lib.stride_tricks.sliding_window_view(x.astype(float), (7, 7), axis=(0, 1))
        for x in (a, b)
    ]
    x, y = (view.reshape(*view.shape[:3], 49) for view in views)
    mx, my = x.mean(-1), y.mean(-1)
    vx, vy = x.var(-1, ddof=1), y.var(-1, ddof=1)
    covariance = ((x - mx[..., None]) * (y - my[..., None])).sum(-1) / 48
    values = (2 * mx * my + one) * (2 * covariance + two)
    return float((values / ((mx**2 + my**2 + one) * (vx + vy + two))).mean())
