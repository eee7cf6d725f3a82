"""scripts/compare_polygraphy.py: its inputs, its ONNX Runtime half, and its verdict."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rainfusion_trt.engine import EngineRecipe, build_engine, load_metadata
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import get_model

pytest.importorskip("polygraphy")
pytestmark = [
    pytest.mark.tensorrt,
    pytest.mark.skipif(
        "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
    ),
]


@pytest.fixture(scope="module")
def script():
    from benchmarks.engine import compare_polygraphy

    return compare_polygraphy


@pytest.fixture(scope="module")
def engine(exported, tmp_path_factory, plugin_library):
    clip = {"frames": 9, "height": 64, "width": 96, "batch": 2}
    profile = EngineRecipe.model_validate(
        {
            "model": "cogvideox-5b",
            "precision": "float16",
            "target": ["sm80"],
            "sizes": {"clip": clip},
        }
    )
    output = tmp_path_factory.mktemp("polygraphy") / "tiny.engine"
    return build_engine(
        exported / "float16.onnx", recipe=profile, plugin=plugin_library, output=output
    )


def test_feed_is_the_engines(script, exported, engine):
    feed = script.make_feed(exported / "float16.onnx", load_metadata(engine))
    assert list(feed) == [record.name for record in load_metadata(engine).inputs]
    assert feed["hidden_states"].shape == (2, 3, 16, 8, 12)
    assert feed["hidden_states"].dtype == np.float16 and feed["timestep"].dtype == np.float32
    assert feed["rotary_cos"].dtype == np.float32 and feed["sparsity"] == [0.0]


def test_other_size_and_other_model(script, exported, engine):
    metadata, onnx = load_metadata(engine), exported / "float16.onnx"
    assert script.make_feed(onnx, metadata, size="17x64x96")["rotary_sin"].shape == (120, 64)
    other = metadata.model_copy(update={"model": "cogvideox-2b", "config": {}})
    with pytest.raises(InvalidInputError, match="not one model"):
        script.make_feed(onnx, other)


class Eager:
    """The exported transformer itself in the engine's place, in float32."""

    def __init__(self, script, feed, gain):
        class Runner(script.BaseRunner):
            def get_input_metadata_impl(self):
                metadata = script.TensorMetadata()
                for name, array in feed.items():
                    metadata.add(name, dtype=array.dtype, shape=array.shape)
                return metadata

            def infer_impl(self, feed_dict):
                self.inference_time = 0.0
                model = get_model("cogvideox-5b")
                transformer = model.create(model.config("tiny"), dtype=torch.float16).float()
                inputs = {name: torch.from_numpy(array) for name, array in feed_dict.items()}
                inputs = {n: x.float() if x.is_floating_point() else x for n, x in inputs.items()}
                with torch.no_grad():
                    out = transformer(**model.forward_kwargs(inputs), return_dict=False)[0]
                return script.OrderedDict(sample=(gain * out).half().numpy())

        self.runner = Runner(name="eager")


@pytest.mark.parametrize(("gain", "same"), [(1.0, True), (1.1, False)])
def test_onnx_runtime_half(script, exported, engine, gain, same):
    onnx = exported / "float16.onnx"
    feed = script.make_feed(onnx, load_metadata(engine))
    runners = [script.onnx_runner(onnx), Eager(script, feed, gain).runner]
    assert script.compare(runners, feed, rtol=2e-2, atol=2e-2) is same


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_engine_half_says_that_it_needs_a_gpu(script, exported, engine):
    import typer

    app = typer.Typer()
    app.command()(script.main)
    arguments = [str(exported / "float16.onnx"), "--engine", str(engine)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "NVIDIA GPU only" in result.output
