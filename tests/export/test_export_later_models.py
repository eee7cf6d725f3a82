"""SkyReels V2, Cosmos-Predict 2.5 and Kandinsky 5 as graphs of varying shapes and as engines.

By hand, as they take minutes. Their tests in tests/models compare graphs of one size in CI.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnxruntime
import pytest
import torch

from helpers.cosmos_resize import resizing
from helpers.routed_parity import outputs
from rainfusion_trt.engine.recipe import EngineRecipe
from rainfusion_trt.models import VideoSize

pytestmark = pytest.mark.rehearsal

NAMES = ("skyreels-v2-14b", "skyreels-v2-i2v-14b", "cosmos-predict2.5-2b", "kandinsky5-lite")
SIZES = ((VideoSize(5, 64, 96), 1), (VideoSize(17, 96, 160), 2))  # neither is what was traced
TOLERANCE = 1e-4  # as in test_exported_models.py


@pytest.fixture(autouse=True, scope="module")
def _resizing() -> Iterator[None]:
    with resizing():
        yield


@pytest.mark.parametrize("name", NAMES)
def test_one_graph_equals_pytorch_at_unseen_sizes(exported, name):
    dynamic = exported(name, dynamic=True, layers=1)
    model, transformer = dynamic.model, dynamic.transformer
    session = onnxruntime.InferenceSession(dynamic.path, providers=["CPUExecutionProvider"])
    for size, batch in SIZES:
        inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
        (expected,) = outputs(transformer, model.forward_kwargs(inputs))
        feed = {key: tensor.numpy() for key, tensor in inputs.items()}
        (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
        assert actual.shape == tuple(expected.shape)
        error = (torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()
        assert error <= TOLERANCE, size


@pytest.mark.tensorrt
@pytest.mark.parametrize("name", NAMES)
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(
    exported, plugin_library, tmp_path, name
):
    from rainfusion_trt.engine import build_engine, load_metadata
    from rainfusion_trt.engine.flavour import available_flavours

    if "tensorrt_rtx" not in available_flavours():
        pytest.skip("TensorRT for RTX is not installed")
    builder = {"optimization_level": 0, "workspace_gib": 1}
    recipe = EngineRecipe.model_validate(
        {"model": name, "precision": "float16", "target": ["sm80"], "builder": builder}
    )
    file = exported(name, torch.float16, layers=1)
    folder = build_engine(file.path, recipe=recipe, plugin=plugin_library, output=tmp_path / "e")
    built = load_metadata(folder)
    assert built.plugin_layers == file.report.facts.attentions == 1
    assert [i.name for i in built.inputs] == [g.name for g in file.model.inputs] + ["sparsity"]
