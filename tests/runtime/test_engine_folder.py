"""`Pipeline` and engine folders, as far as that needs no GPU."""

from __future__ import annotations

import hashlib

import pytest
import torch

from helpers.cogvideox_pipeline import tiny_pipeline
from helpers.engine_folders import engine_metadata
from rainfusion_trt import Pipeline
from rainfusion_trt.engine.metadata import (
    TensorRecord,
    save_metadata,
)
from rainfusion_trt.engine.recipe import BuilderSettings
from rainfusion_trt.errors import BackendUnavailableError, EngineLoadError, InvalidInputError
from rainfusion_trt.models import VideoSize, get_model

MODEL = get_model("cogvideox")
PLAN = b"no engine that any TensorRT would load"


@pytest.fixture
def pipe():
    made = tiny_pipeline(MODEL, size=VideoSize(9, 64, 96))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def folder(tmp_path):
    """Writes an engine folder whose metadata differs from a right one as told."""

    def write(**changes):
        fields = {
            "model": MODEL.name,
            "config": MODEL.config("tiny"),
            "settings": {"method": "rainfusion", "alpha": 0.9, "sink_frames": 1},
            "targets": ("sm80",),
            "profiles": ("only",),
            "builder": BuilderSettings(),
            "inputs": (TensorRecord(name="hidden_states", dtype="float16", shape=(2, 3)),),
            "outputs": (TensorRecord(name="sample", dtype="float16", shape=(2, 3)),),
            "engine_size": len(PLAN),
            "engine_sha256": hashlib.sha256(PLAN).hexdigest(),
        }
        (tmp_path / "engine.plan").write_bytes(PLAN)
        save_metadata(tmp_path, engine_metadata(**{**fields, **changes}))
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("changes", "arguments", "error", "words"),
    [
        ({}, {"backend": "tensorrt"}, InvalidInputError, "engine was built by 'tensorrt_rtx'"),
        ({}, {"backend": "onnxruntime"}, InvalidInputError, "needs onnx="),
        ({}, {"model": "cogvideox-2b"}, InvalidInputError, "model= says cogvideox-2b"),
        ({}, {"alpha": 0.5}, InvalidInputError, "exported with alpha=0.9"),
        ({"model": None}, {}, EngineLoadError, "does not say which model"),
        ({"config": {}}, {}, EngineLoadError, "of which configuration"),
        ({"settings": {}}, {"alpha": 0.9}, InvalidInputError, "does not say what it was exported"),
        ({"model": "sora"}, {}, InvalidInputError, "'sora' is unknown"),
        (
            {"config": {**MODEL.config("tiny"), "num_layers": 42}},
            {},
            EngineLoadError,
            "num_layers 42 instead of 2",
        ),
        ({"engine_size": 1}, {}, EngineLoadError, "damaged"),
    ],
)
def test_engines_that_do_not_fit(pipe, folder, changes, arguments, error, words):
    with pytest.raises(error, match=words):
        Pipeline(pipe=pipe, engine=folder(**changes), **arguments)
    assert type(pipe.transformer).__name__ == MODEL.transformer_class


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_an_engine_without_a_gpu_is_an_error_unless_falling_back_is_allowed(pipe, folder, caplog):
    engine = folder()
    with pytest.raises(BackendUnavailableError, match="NVIDIA GPU"):
        Pipeline(pipe=pipe, engine=engine)
    with Pipeline(pipe=pipe, engine=engine, allow_fallback=True) as pipeline:
        assert pipeline.backend == "torch"
    assert "tensorrt_rtx cannot run here" in caplog.text
    assert "falling back to torch" in caplog.text
