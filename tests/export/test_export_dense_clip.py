"""What an export says of a clip on which its graph could only be dense."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings

MODEL = get_model("cogvideox-5b")
WIDE = VideoSize(frames=37, height=96, width=128)  # with windows that do not all meet
SMALL = VideoSize(frames=9, height=32, width=32)
SINKS = {"sink_frames": 1, "last_sink_frames": 8}


class WorkBeginsError(Exception):
    """Raised as the work begins."""


def begin(_name: str) -> None:
    raise WorkBeginsError


@pytest.mark.parametrize(
    ("size", "settings", "words"),
    [
        (WIDE, {}, None),
        (WIDE, SINKS, "37x96x128 alone runs dense at any sparsity: the clip has 10 latent frames"),
        (WIDE, {"exact_frames": (4,)}, None),
        (WIDE, {"exact_frames": (2, 4, 6, (8, 10))}, "'piecewise' nothing to leave out"),
        (WIDE, {"exact_frames": (2,), "method": "rainfusion2"}, None),
        (WIDE, {"exact_frames": (2, 4, 6), "method": "rainfusion2"}, "'rainfusion2' nothing to"),
        (WIDE, {"method": "rainfusion_two_way"}, None),
        (SMALL, {"method": "rainfusion_two_way"}, "every two blocks of method 'rainfusion_two_way"),
        (SMALL, {"method": "rainfusion"}, None),
        (SMALL, {}, "one window of method 'piecewise'"),
    ],
)
def test_a_graph_of_one_size_that_is_dense_there(size, settings, words, tmp_path, caplog):
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32, seed=0)
    for dynamic in (False, True):  # whose size is only an example
        caplog.clear()
        with pytest.raises(WorkBeginsError):
            export_model(
                MODEL,
                transformer,
                size,
                output=tmp_path / "x.onnx",
                settings=AttentionSettings(**settings),
                dynamic=dynamic,
                stage=begin,
            )
        if words is None or dynamic:
            assert not caplog.records
        else:
            assert words in caplog.text
