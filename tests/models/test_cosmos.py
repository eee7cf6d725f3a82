"""Cosmos-Predict 2.5 in the registry, under `enable` and as a graph."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from diffusers import CosmosTransformer3DModel, UniPCMultistepScheduler
from diffusers.models.transformers import transformer_cosmos

import rainfusion_trt
from helpers.cosmos_resize import resizing
from rainfusion_trt.errors import BackendUnavailableError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.sigma_schedule import SigmaSchedule
from tests.helpers.routed_parity import check_full_graph, check_parity, outputs, sizes_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("cosmos-predict2.5-2b", "cosmos-predict2.5-14b")
SITES = ("transformer_blocks.0.attn1", "transformer_blocks.1.attn1")


@pytest.fixture(autouse=True)
def _resizing():
    with resizing():
        yield


def tiny(name: str, **changes):
    model = get_model(name)
    return model, model.create({**model.config("tiny"), **changes}, dtype=torch.float32)


def call_of(model, transformer, size, batch, *, given=2, sigma=0.7, seed=0) -> dict:
    """As the pipeline calls it for a clip whose first `given` latent frames are known.

    The latents of these frames are clean and have a timestep next to 0, their mask is 1; the
    padding mask has the size of the pictures.
    """
    inputs = model.example_inputs(transformer, size, batch=batch, seed=seed)
    mask = torch.zeros_like(inputs["condition_mask"])
    mask[:, :, :given] = 1
    known = mask[..., :1, :1]
    call = {**model.forward_kwargs(inputs), "condition_mask": mask}
    call["timestep"] = known * 0.0001 + (1 - known) * sigma
    call["padding_mask"] = torch.zeros(1, 1, size.height, size.width)
    return call


@pytest.mark.parametrize("name", NAMES)
def test_full_size(name):
    """2B and 14B parameters, and every self-attention counted."""
    model = get_model(name)
    with torch.device("meta"):
        transformer = CosmosTransformer3DModel(**model.config())
    billions = sum(p.numel() for p in transformer.parameters()) / 1e9
    assert billions == pytest.approx(float(name.rpartition("-")[2][:-1]), rel=0.04)
    assert model.attention_count(transformer.config) == len(transformer.transformer_blocks)
    assert model_of(transformer) is model and model_of(tiny(name)[1]) is model
    extents = model.extents(model.config(), model.defaults.size, 1)
    assert [extents[f"grid_{axis}"] for axis in ("frames", "height", "width")] == [24, 44, 80]


@pytest.mark.parametrize(
    "change",
    [
        {"use_crossattn_projection": False},
        {"controlnet_block_every_n": 7},
        {"img_context_dim_in": 8},
        {"in_channels": 16},
    ],
    ids=str,
)
def test_other_models_of_the_class_are_not_taken_for_it(change):
    with pytest.raises(UnsupportedError, match="CosmosTransformer3DModel"):
        model_of(tiny(NAMES[0], **change)[1])


@pytest.mark.parametrize("name", NAMES)
def test_enable_is_dense_at_zero_and_sparse_in_self_attention(name):
    """With known frames, and without any and one timestep for all frames."""
    model, transformer = tiny(name)
    for size, batch in sizes_of(model):
        call = call_of(model, transformer, size, batch)
        check_parity(model, transformer, call, SITES)
    call = call_of(model, transformer, size, batch, given=0)
    dense = outputs(transformer, call)[0]
    call["timestep"] = torch.full((batch,), 0.7)
    torch.testing.assert_close(outputs(transformer, call)[0], dense, atol=1e-5, rtol=0)
    check_parity(model, transformer, call, SITES)


def test_text_and_image_of_a_control_network():
    """Cosmos-Transfer's transformer, where a user says that it works like this model."""
    model, transformer = tiny(NAMES[0], img_context_dim_in=8, img_context_dim_out=256)
    size, batch = sizes_of(model)[0]
    call = call_of(model, transformer, size, batch)
    call["encoder_hidden_states"] = (call["encoder_hidden_states"], torch.randn(batch, 5, 8))
    check_parity(model, transformer, call, SITES)


def test_torch_compile():
    model, transformer = tiny(NAMES[0], num_layers=1)
    size, batch = sizes_of(model)[1]
    check_full_graph(model, transformer, call_of(model, transformer, size, batch))


def test_a_schedule_reads_the_noise_off_the_timestep():
    """The pipeline's timesteps are no share of the scheduler's thousand."""
    model, transformer = tiny(NAMES[0])
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction")
    schedule = SigmaSchedule(sparsity=0.5, dense_above=0.8, dense_below=0.1)
    routing = rainfusion_trt.enable(
        transformer, scheduler=scheduler, schedule=schedule, method="rainfusion"
    )
    size = sizes_of(model)[0][0]
    for sigma, sparsity in ((0.95, 0.0), (0.5, 0.5), (0.05, 0.0)):
        outputs(transformer, call_of(model, transformer, size, 1, sigma=sigma))
        assert routing.sparsity_tensor.tolist() == [sparsity]


# -- the graph -------------------------------------------------------------------------------------


def test_graph_inputs_hold_all_of_a_pipelines_call():
    model, transformer = tiny(NAMES[0])
    size = VideoSize(9, 64, 96)
    call = call_of(model, transformer, size, 2)
    inputs = model.graph_inputs(call)
    expected = model.example_inputs(transformer, size, batch=2)
    assert {n: (t.shape, t.dtype) for n, t in inputs.items()} == {
        n: (t.shape, t.dtype) for n, t in expected.items()
    }
    again = outputs(transformer, model.forward_kwargs(inputs))
    assert torch.equal(again[0], outputs(transformer, call)[0])
    one = model.graph_inputs({**call, "timestep": torch.tensor([0.3, 0.4])})["timestep"]
    assert one.shape == (2, 1, 3, 1, 1) and one[1].unique().tolist() == pytest.approx([0.4])
    wrong = {
        "padding_mask": torch.ones(1, 1, 64, 96),
        "fps": 16,
        "attention_mask": torch.ones(2, 4),
    }
    for name, value in wrong.items():
        with pytest.raises(UnsupportedError, match=name):
            model.graph_inputs({**call, name: value})


def test_without_torchvision_it_is_named(tmp_path, monkeypatch):
    """An engine needs none, diffusers' transformer does."""
    monkeypatch.delattr(transformer_cosmos, "transforms")
    model, transformer = tiny(NAMES[0], num_layers=1)
    output = tmp_path / "m.onnx"
    with pytest.raises(BackendUnavailableError, match="pip install torchvision"):
        export_model(model, transformer, model.tiny_size, output=output)
    with pytest.raises(BackendUnavailableError, match="pip install torchvision"):
        model.check_media({"prompt": "a fox"}, exported=False)
    model.check_media({"prompt": "a fox"}, exported=True)


def test_exported_graph_equals_pytorch(tmp_path):
    model, transformer = tiny(NAMES[0], num_layers=1)
    report = export_model(
        model, transformer, model.tiny_size, output=tmp_path / "m.onnx", run_compare=False
    )
    assert report.facts.attentions == 1
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    call = call_of(model, transformer, model.tiny_size, 1, given=1, seed=1)
    expected = outputs(transformer, call)[0]
    feed = {name: tensor.numpy() for name, tensor in model.graph_inputs(call).items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    error = (torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4  # as in tests/export/test_exported_models.py
