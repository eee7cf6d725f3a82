"""The token grid of packed tokens, of numbers and of the coordinates that pipelines make."""

from __future__ import annotations

import pytest
import torch
from diffusers import LTXConditionPipeline

import rainfusion_trt
from helpers.ltx_models import call_of, errors, run, tiny
from helpers.ltx_pipelines import taking
from rainfusion_trt.errors import DenseAttentionError, NotSparseError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.models.ltx_tokens import PackedTokens, packed_tokens

GRIDS = [(3, 4, 6), (5, 1, 7), (5, 7, 1), (4, 1, 1), (1, 3, 2), (1, 1, 1)]


def ids(frames: int, height: int, width: int, at: int = 0) -> torch.Tensor:
    """[1, 3, S], as LTXConditionPipeline makes them of a clip, or of frames for the place `at`."""
    places = LTXConditionPipeline._prepare_video_ids(1, frames, height, width)
    return LTXConditionPipeline._scale_video_ids(places, frame_index=at).float()


def call(coordinates: torch.Tensor, numbers=None) -> dict:
    tokens = torch.empty(1, coordinates.shape[2], 8)
    given = dict(zip(("num_frames", "height", "width"), numbers or (None,) * 3, strict=True))
    return {"hidden_states": tokens, "video_coords": coordinates, **given}


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_all_tokens_are_the_grid(grid):
    coordinates = ids(*grid)
    assert packed_tokens(call(coordinates)) == PackedTokens(grid)
    with_ends = torch.stack([coordinates, coordinates + 1], dim=-1)
    assert packed_tokens(call(with_ends)) == PackedTokens(grid)
    assert packed_tokens({**call(coordinates, grid), "video_coords": None}) == PackedTokens(grid)


@pytest.mark.parametrize("grid", [(5, 4, 6), (5, 1, 6), (5, 6, 1)], ids=str)
def test_tokens_of_frames_stand_before_or_behind_the_grid(grid):
    """Also one of a later frame, which looks like one frame more where no numbers are given."""
    area = grid[1] * grid[2]
    frames = [ids(1, *grid[1:], at=16), ids(2, *grid[1:], at=40)]
    before = torch.cat([*frames, ids(*grid)], dim=2)
    assert packed_tokens(call(before)) == PackedTokens(grid, before=3 * area)
    behind = torch.cat([ids(*grid), frames[1], frames[0]], dim=2)
    assert packed_tokens(call(behind, grid)) == PackedTokens(grid, after=3 * area)


@pytest.mark.parametrize("count", [4, 5, 8])
def test_pictures_that_follow_each_other_are_not_the_clip(count):
    """As many as the clip has frames, fewer and more: the clip is what begins at time 0."""
    pictures = [ids(1, 4, 6, at=4 * place) for place in range(1, count + 1)]
    before = torch.cat([*pictures, ids(5, 4, 6)], dim=2)
    expected = PackedTokens((5, 4, 6), before=count * 24)
    assert packed_tokens(call(before)) == expected
    assert packed_tokens(call(before, (5, 4, 6))) == expected
    behind = torch.cat([ids(5, 4, 6), *pictures], dim=2)
    assert packed_tokens(call(behind, (5, 4, 6))) == PackedTokens((5, 4, 6), after=count * 24)


def test_a_reference_of_another_size_stands_behind():
    coordinates = torch.cat([ids(4, 4, 6), ids(4, 2, 3)], dim=2)
    assert packed_tokens(call(coordinates, (4, 4, 6))) == PackedTokens((4, 4, 6), after=24)
    longer = torch.cat([ids(4, 4, 6), ids(6, 4, 6)], dim=2)
    assert packed_tokens(call(longer, (4, 4, 6))) == PackedTokens((4, 4, 6), after=144)


def test_what_is_no_grid_is_refused():
    coordinates = ids(3, 4, 6)
    shuffled = coordinates[:, :, torch.randperm(72, generator=torch.Generator().manual_seed(0))]
    both = torch.cat([ids(2, 4, 6, at=40), coordinates, ids(1, 4, 6, at=8)], dim=2)
    for wrong in (shuffled, both):
        with pytest.raises(NotSparseError, match="in no grid of frames, rows and columns"):
            packed_tokens(call(wrong))
    with pytest.raises(NotSparseError, match=r"72 tokens, and .* is 3 x 4 x 5"):
        packed_tokens({**call(coordinates, (3, 4, 5)), "video_coords": None})
    with pytest.raises(NotSparseError, match=r"shape \(1, 2, 72\)"):
        packed_tokens(call(coordinates, (3, 4, 5)) | {"video_coords": coordinates[:, :2]})


@pytest.mark.parametrize(("name", "place"), [("ltx-video-2b", "first"), ("ltx-2", "last")])
def test_conditioning_tokens_are_attended_to_by_all(name, place):
    """They are where text is in other models: dense at sparsity 0, and never left out."""
    model, transformer = tiny(name)
    given = call_of(model, transformer, VideoSize(33, 256, 256))
    if name == "ltx-2":
        extra = given["video_coords"][:, :, :64] + 1
        given["video_coords"] = torch.cat([given["video_coords"], extra], dim=2)
    else:  # as LTXConditionPipeline: no numbers
        given["video_coords"] = torch.cat([ids(1, 8, 8, at=16), ids(5, 8, 8)], dim=2)
        for number in ("num_frames", "height", "width"):
            del given[number]
    for key in ("hidden_states", "timestep"):
        given[key] = torch.cat([given[key], given[key][:, :64]], dim=1)
    if name == "ltx-2":
        given["audio_sigma"] = given["audio_timestep"][:, 0]
        given["sigma"] = given["audio_timestep"][:, 0]
    dense = run(transformer, given)
    routing = rainfusion_trt.enable(transformer, sparsity=0.0, method="rainfusion")
    assert max(errors(run(transformer, given), dense)) < 1e-5
    layout = model.layout(transformer, given)
    assert (layout.text, layout.text_tokens, tuple(layout.grid.shape)) == (place, 64, (5, 8, 8))
    routing.sparsity = 0.6
    assert torch.isfinite(run(transformer, given)[0]).all() and routing.routed == 2
    inputs = model.graph_inputs(given)
    assert (inputs["hidden_states"].shape[1], inputs["grid"].shape) == (384, (5, 8, 8))
    small, other = ((5, 8, 8), 383), ((9, 8, 8), 600)
    for room in (None, 384):
        model.check_room(inputs, taking(small, ((5, 8, 8), room)))
    model.check_room(inputs, taking(other))  # which the clip does not fit whatever its conditions
    with pytest.raises(UnsupportedError, match=r"64 conditioning tokens .* up to 383 .*--dynamic"):
        model.check_room(inputs, taking(small, other))


@pytest.mark.parametrize(("name", "side"), [("ltx-video-2b", "behind"), ("ltx-2", "before")])
def test_a_graph_takes_conditioning_tokens_on_one_side(name, side):
    model = get_model(name)
    parts = [ids(1, 4, 6, at=16), ids(3, 4, 6)]
    coordinates = torch.cat(parts if side == "before" else parts[::-1], dim=2)
    with pytest.raises(UnsupportedError, match=f"24 conditioning tokens {side} the 3 x 4 x 6"):
        model.grid_of_call(call(coordinates, (3, 4, 6)))


def test_without_a_grid_nothing_is_sparse():
    model, transformer = tiny("ltx-video-2b")
    given = call_of(model, transformer, model.tiny_size)
    given.update(num_frames=1, height=1, width=1)  # as LTXI2VLongMultiPromptPipeline has them
    dense = run(transformer, given)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    run(transformer, given)
    assert routing.routed == 2  # of the coordinates
    given["video_coords"] = given["video_coords"].flip(-1).roll(5, -1)
    with pytest.raises(DenseAttentionError, match="ltx-video-2b: video_coords .* no grid"):
        run(transformer, given)
    assert model.grid_shape(transformer, given) == (0, 0, 0)
    routing.allow_dense = True
    rainfusion_trt.disable(transformer)
    right = run(transformer, given)
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.5, allow_dense=True, method="rainfusion"
    )
    assert torch.equal(run(transformer, given)[0], right[0])
    assert len(routing.report().dense) == 2 and not torch.equal(right[0], dense[0])


def test_a_compiled_graph_breaks_where_it_has_to_read_coordinates():
    model, transformer = tiny("ltx-video-2b", num_layers=1)
    given = call_of(model, transformer, model.tiny_size)
    routing = rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    expected = run(transformer, given)
    for number in ("num_frames", "height", "width"):
        del given[number]
    compiled = torch.compile(transformer, backend="eager")
    assert max(errors(run(compiled, given), expected)) < 1e-5 and routing.routed == 1
    torch._dynamo.reset()
    compiled = torch.compile(transformer, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="ltx_tokens"):
        run(compiled, given)
    torch._dynamo.reset()
