"""Kandinsky 5 in the registry, under `enable` and as a graph."""

from __future__ import annotations

import onnxruntime
import pytest
import torch
from diffusers import Kandinsky5T2VPipeline, Kandinsky5Transformer3DModel

import rainfusion_trt
from rainfusion_trt.errors import DenseAttentionError, InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model, model_of
from tests.helpers.routed_parity import check_full_graph, check_parity, outputs, sizes_of

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("kandinsky5-lite", "kandinsky5-pro")
SITES = tuple(f"visual_transformer_blocks.{i}.self_attention" for i in range(2))


def tiny(name: str, *, layers: int | None = None, **changes):
    model = get_model(name)
    config = {**model.config("tiny", layers=layers), **changes}
    return model, model.create(config, dtype=torch.float32)


def call_of(model, transformer, size, batch, *, text=100, seed=0) -> dict:
    """As the pipelines call it, with a first frame that is given: its latents and its mask."""
    inputs = model.example_inputs(transformer, size, batch=batch, seed=seed)
    known = inputs["hidden_states"][..., 16:]
    known[:, 1:] = 0
    known[:, 0, ..., -1] = 1
    inputs["timestep"] = torch.linspace(900.0, 20.5, batch)
    call = {**model.forward_kwargs(inputs), "sparse_params": None, "scale_factor": (1, 2, 2)}
    call["encoder_hidden_states"] = call["encoder_hidden_states"][:, :text]
    call["text_rope_pos"] = torch.arange(text)
    return call


@pytest.mark.parametrize(("name", "billions"), [(NAMES[0], 2), (NAMES[1], 19)])
def test_full_size(name, billions):
    """2B and 19B parameters, and the self-attentions of the visual blocks counted."""
    model = get_model(name)
    with torch.device("meta"):
        transformer = Kandinsky5Transformer3DModel(**model.config())
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(
        billions, rel=0.05
    )
    assert model.attention_count(transformer.config) == len(transformer.visual_transformer_blocks)
    assert model_of(transformer) is model and model_of(tiny(name)[1]) is model
    head = transformer.visual_transformer_blocks[0].self_attention.query_norm.normalized_shape
    assert model.head_size(transformer.config) == head[0]
    with pytest.raises(InvalidInputError, match=r"layers=61 must be .*visual blocks"):
        model.config("full", layers=61)


def test_networks_for_pictures_are_not_taken_for_it():
    with pytest.raises(UnsupportedError, match="Kandinsky5Transformer3DModel"):
        model_of(tiny(NAMES[0], visual_cond=False)[1])


@pytest.mark.parametrize("name", NAMES)
def test_enable_is_dense_at_zero_and_sparse_in_visual_self_attention(name):
    model, transformer = tiny(name, layers=1)
    for size, batch in sizes_of(model):
        check_parity(model, transformer, call_of(model, transformer, size, batch), SITES[:1])


def test_blocks_behind_the_first():
    """Queries and keys are rounded to bfloat16, whatever the dtype of the network.

    A difference of 1e-7 in the first block moves one in several thousand of them to the next number
    of bfloat16, by 1/256, in the second. Another kernel of PyTorch does so too, without RainFusion.
    """
    model, transformer = tiny(NAMES[0])
    size, batch = sizes_of(model)[1]
    call = call_of(model, transformer, size, batch)
    check_parity(model, transformer, call, SITES, tolerance=1e-4)


def test_torch_compile():
    model, transformer = tiny(NAMES[0], layers=1)
    size, batch = sizes_of(model)[1]
    check_full_graph(model, transformer, call_of(model, transformer, size, batch))


def test_nabla_is_refused_and_can_be_replaced():
    """The pipeline's own parameters of a checkpoint for 10 seconds."""
    nabla = {"attention_type": "nabla", "attention_P": 0.9, "attention_add_sta": True}
    nabla |= {f"attention_w{axis}": 3 for axis in "THW"}
    model, transformer = tiny(NAMES[0], layers=1, **nabla)
    assert model_of(transformer) is model
    call = call_of(model, transformer, VideoSize(25, 128, 128), 1)
    pipe = Kandinsky5T2VPipeline.__new__(Kandinsky5T2VPipeline)
    pipe.transformer = transformer

    def sparse_params():
        return pipe.get_sparse_params(call["hidden_states"], torch.device("cpu"))

    rainfusion_trt.enable(transformer, sparsity=0.0)
    with pytest.raises(UnsupportedError, match=r"NABLA.*attention_type=\"regular\"") as error:
        outputs(transformer, {**call, "sparse_params": sparse_params()})
    assert "\n" not in str(error.value)
    rainfusion_trt.disable(transformer)
    transformer.register_to_config(attention_type="regular")
    assert sparse_params() is None
    check_parity(model, transformer, {**call, "sparse_params": sparse_params()}, SITES[:1])


def test_one_window_of_piecewise_is_seen():
    """By the size of a head, which this network's configuration gives as parts of a rotation."""
    model, transformer = tiny(NAMES[0], layers=1)
    rainfusion_trt.enable(transformer, sparsity=0.5, method="piecewise")
    with pytest.raises(DenseAttentionError, match="one window of method 'piecewise'"):
        outputs(transformer, call_of(model, transformer, VideoSize(9, 64, 96), 1))


def test_graph_inputs_hold_all_of_a_pipelines_call():
    model, transformer = tiny(NAMES[0], layers=1)
    call = call_of(model, transformer, VideoSize(9, 64, 96), 2)
    inputs = model.graph_inputs(call)
    assert list(inputs) == [given.name for given in model.inputs]
    assert inputs["scale_factor"].tolist() == [1.0, 2.0, 2.0]
    again = outputs(transformer, model.forward_kwargs(inputs))
    assert torch.equal(again[0], outputs(transformer, call)[0])
    with pytest.raises(UnsupportedError, match="count from 0"):
        model.graph_inputs({**call, "text_rope_pos": call["text_rope_pos"] + 1})
    with pytest.raises(UnsupportedError, match="sparse_params"):
        model.graph_inputs({**call, "sparse_params": {"to_fractal": True}})


def test_exported_graph_equals_pytorch(tmp_path):
    model, transformer = tiny(NAMES[0], layers=1)
    report = export_model(
        model, transformer, model.tiny_size, output=tmp_path / "m.onnx", run_compare=False
    )
    assert report.facts.attentions == 1
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    call = call_of(model, transformer, model.tiny_size, 1, text=512, seed=1)
    expected = outputs(transformer, call)[0]
    feed = {name: tensor.numpy() for name, tensor in model.graph_inputs(call).items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    error = (torch.from_numpy(actual) - expected).abs().max() / expected.abs().max()
    assert error < 1e-4  # as in tests/export/test_exported_models.py
