"""SkyReels V2, Cosmos-Predict 2.5 and Kandinsky 5 as graphs of varying shapes and as engines.

By hand, as they take minutes. Their tests in tests/models compare graphs of one size in CI.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnxruntime
import pytest
import torch

from helpers.built_engines import built_for_rtx
from helpers.cosmos_resize import resizing
from helpers.routed_parity import outputs
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
    file = exported(name, torch.float16, layers=1)
    built = built_for_rtx(
        file.path, plugin_library, tmp_path / "e", model=name, precision="float16", target=["sm80"]
    )
    assert built.plugin_layers == file.report.facts.attentions == 1
    assert [i.name for i in built.inputs] == [g.name for g in file.model.inputs] + ["sparsity"]
