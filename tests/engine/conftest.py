"""A tiny CogVideoX, exported once for all tests of this folder."""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt.models import VideoSize, get_model

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
SIZE = VideoSize(frames=9, height=64, width=96)


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A tiny CogVideoX-5B: in float16 with dynamic shapes, in bfloat16 with fixed ones."""
    export = pytest.importorskip("rainfusion_trt.export")
    folder = tmp_path_factory.mktemp("exported")
    model = get_model("cogvideox-5b")
    for name, dtype in DTYPES.items():
        transformer = model.create(model.config("tiny"), dtype=dtype)
        export.export_model(
            model, transformer, SIZE, output=folder / f"{name}.onnx", dynamic=name == "float16"
        )
    return folder
