"""Conditions of a call, counted by its arguments against the tokens that the pipelines make."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helpers.ltx_models import tiny
from helpers.ltx_pipelines import (
    Conditions,
    arguments_of,
    call_with_conditions,
    condition_pipeline,
    taking,
)
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.models import VideoSize

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = VideoSize(33, 64, 96)  # 5 x 2 x 3 tokens
# Also a last picture (-1), clips that reach over the end, clips of LTX-Video that lie in the grid
# but for two latent frames, and what LTX-2 leaves out, as it begins behind the end.
CALLS: dict[str, tuple[Conditions, ...]] = {
    "ltx-video-2b": ((), ((0, 1),), ((4, 1), (2, 1)), ((1, 17), (0, 9), (3, 1)), ((2, 40),)),
    "ltx-2.3": ((), ((0, 9),), ((-1, 1), (2, 1)), ((1, 17), (4, 9)), ((3, 30), (5, 1))),
}


@pytest.mark.parametrize("name", CALLS)
def test_frames_by_arguments_are_those_of_the_forward(name):
    model, transformer = tiny(name, num_layers=1)
    pipe = condition_pipeline(transformer)
    found = set()
    for conditions in CALLS[name]:
        call = call_with_conditions(transformer, SIZE, conditions)
        beside = call["hidden_states"].shape[1] - 30
        arguments = arguments_of(pipe, SIZE, conditions)
        assert 6 * model.condition_frames(arguments) == beside, conditions
        found.add(beside)
        for room in (None, 30 + beside):
            model.check_conditions(arguments, taking(((5, 2, 3), room)))
        if beside:
            words = f"{beside} conditioning tokens .* {30 + beside} in all.* up to {29 + beside}"
            with pytest.raises(UnsupportedError, match=words):
                model.check_conditions(arguments, taking(((5, 2, 3), 29 + beside)))
    assert len(found) > 2


def test_pictures_and_clips_may_be_arguments_of_their_own():
    """As LTXConditionPipeline pairs them, and tensors for clips."""
    model, _ = tiny("ltx-video-2b", num_layers=1)
    picture, clip = np.zeros((64, 96, 3), np.uint8), torch.zeros(9, 3, 64, 96)
    for arguments, frames in (
        ({"image": picture}, 0),
        ({"image": picture, "frame_index": 8}, 1),
        ({"image": [picture, None], "video": [None, clip], "frame_index": [0, 16]}, 2),
        ({"video": clip, "frame_index": 16}, 2),
        ({"frame_index": 16}, 0),
    ):
        assert model.condition_frames({"num_frames": 33, **arguments}) == frames
