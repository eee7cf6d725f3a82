"""An exported tiny CogVideoX through `Pipeline` in ONNX Runtime on the CPU."""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt.errors import (
    BackendUnavailableError,
    EngineLoadError,
    InvalidInputError,
    UnsupportedError,
)
from rainfusion_trt.graph_file import parse_size
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.graphs import graph_of_onnx
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

onnx = pytest.importorskip("onnx")
peft = pytest.importorskip("peft")
pytest.importorskip("onnxruntime")

Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu")  # also beside a GPU
MODEL = get_model("cogvideox")
SIZE = VideoSize(9, 64, 96)
CALL = {"prompt": "a fox", "num_inference_steps": 2, "output_type": "latent"}


@pytest.fixture
def pipe():
    made = tiny_pipeline(MODEL, size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An export with dynamic shapes, of the same seed as `pipe`'s transformer."""
    from rainfusion_trt.export import export_model

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32, seed=0)
    settings = AttentionSettings("rainfusion")  # piecewise has one window of clips this small
    return export_model(MODEL, transformer, SIZE, output=path, dynamic=True, settings=settings).path


@pytest.fixture(scope="module")
def fixed(exported) -> Path:
    """The same graph, declared to be for one size."""
    path = exported.with_name("fixed.onnx")
    graph = onnx.load(exported)
    for entry in graph.metadata_props:
        if entry.key == "rainfusion.dynamic":
            entry.value = "false"
    onnx.save(graph, path)
    return path


@pytest.mark.parametrize("size", [SIZE, VideoSize(13, 80, 64)])
@pytest.mark.parametrize("guidance_scale", [1.0, 6.0])
def test_equals_diffusers(pipe, exported, size, guidance_scale):
    call = {**CALL, "guidance_scale": guidance_scale}
    call.update(num_frames=size.frames, height=size.height, width=size.width)
    generator = torch.Generator().manual_seed(3)
    expected = pipe(**call, generator=generator, max_sequence_length=16).frames
    with Pipeline(pipe=pipe, onnx=exported, sparsity=0.0) as pipeline:
        assert pipeline.backend == "onnxruntime"
        frames = pipeline(**call, seed=3).frames
    # Unit scale; guidance multiplies float32 rounding by 6 in each of two steps.
    torch.testing.assert_close(frames, expected, atol=1e-4, rtol=0)


def scheduler_of(name: str):
    common = {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"}
    if name == "linspace":
        return diffusers.EulerDiscreteScheduler(**common, timestep_spacing="linspace")
    return diffusers.EulerDiscreteScheduler(**common, use_karras_sigmas=True)


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((value - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("name", ["linspace", "karras"])
def test_timesteps_with_fractions(pipe, exported, name):
    pipe.scheduler = scheduler_of(name)
    call = {**CALL, "num_inference_steps": 3, "guidance_scale": 1.0}
    call.update(num_frames=SIZE.frames, height=SIZE.height, width=SIZE.width)
    generator = torch.Generator().manual_seed(3)
    expected = pipe(**call, generator=generator, max_sequence_length=16).frames
    assert (pipe.scheduler.timesteps % 1 != 0).any()
    with Pipeline(pipe=pipe, onnx=exported, sparsity=0.0) as pipeline:
        frames = pipeline(**call, seed=3).frames
    assert relative(frames, expected) < 1e-4


def call_at(transformer: torch.nn.Module, timestep: float) -> dict[str, Any]:
    inputs = MODEL.example_inputs(transformer, SIZE, batch=2)
    inputs["timestep"] = torch.full((2,), timestep)
    return {**MODEL.forward_kwargs(inputs), "return_dict": False}


@pytest.mark.parametrize("timestep", [500.9, 0.25, 999.0])
def test_one_call_at_a_timestep(pipe, exported, timestep):
    call = call_at(pipe.transformer, timestep)
    with torch.no_grad():
        (expected,) = pipe.transformer(**call)
        with Pipeline(pipe=pipe, onnx=exported, sparsity=0.0):
            (value,) = pipe.transformer(**call)
    assert relative(value, expected) < 1e-4


def test_graphs_of_before_take_whole_timesteps_only(pipe, exported):
    """Version 0.2 made CogVideoX's timestep an integer."""
    graph = onnx.load(exported)
    for node in graph.graph.node:
        node.input[:] = ["timestep_float" if i == "timestep" else i for i in node.input]
    cast = onnx.helper.make_node("Cast", ["timestep"], ["timestep_float"], to=1)
    graph.graph.node.insert(0, cast)
    for value in graph.graph.input:
        if value.name == "timestep":
            value.type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = exported.with_name("old.onnx")
    onnx.save(graph, path)
    whole, fraction = (call_at(pipe.transformer, timestep) for timestep in (500.0, 500.9))
    with torch.no_grad():
        (expected,) = pipe.transformer(**whole)
        with Pipeline(pipe=pipe, onnx=path, sparsity=0.0):
            (value,) = pipe.transformer(**whole)
            with pytest.raises(InvalidInputError, match="500.9 is no whole number: export"):
                pipe.transformer(**fraction)
    assert relative(value, expected) < 1e-4


def test_a_closed_pipeline_runs_no_graph(pipe, exported):
    transformer = pipe.transformer
    pipeline = Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)
    stand_in = pipe.transformer
    pipeline.close()
    pipeline.close()
    assert pipe.transformer is transformer
    with pytest.raises(InvalidInputError, match="closed: make a new one"):
        pipeline(**CALL, seed=0)
    with pytest.raises(InvalidInputError, match="closed"):
        stand_in(**call_at(transformer, 500.0))


# -- the weights of the graph and of the pipeline --------------------------------------------------


def add_lora(pipe, name: str = "fox") -> None:
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["to_q", "to_v"])
    pipe.transformer.add_adapter(config, adapter_name=name)
    with torch.no_grad():
        for key, value in pipe.transformer.named_parameters():
            if "lora_B" in key:
                value.normal_(generator=torch.Generator().manual_seed(0))


def test_a_lora_in_the_pipeline_is_refused_by_name(pipe, exported):
    add_lora(pipe)
    transformer = pipe.transformer
    with pytest.raises(InvalidInputError, match="adapter 'fox', which the ONNX file .* ignore"):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)
    assert pipe.transformer is transformer
    pipe.transformer.fuse_lora()
    with pytest.raises(InvalidInputError, match="adapter 'fox'"):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)
    with Pipeline(pipe=pipe, onnx=exported, backend="torch") as pipeline:  # has it
        assert pipeline(**CALL, seed=0).sparsity == (0.0, 0.5)


def test_a_lora_fused_and_forgotten(pipe, exported):
    add_lora(pipe)
    pipe.transformer.fuse_lora()
    pipe.transformer.unload_lora()
    with pytest.raises(InvalidInputError, match="other weights than the pipeline's transformer"):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)


def test_a_lora_unloaded(pipe, exported):
    add_lora(pipe)
    pipe.transformer.unload_lora()
    Pipeline(pipe=pipe, onnx=exported, sparsity=0.0).close()


def test_a_lora_after_the_pipeline_was_made(pipe, exported):
    with (
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0),
        pytest.raises(AttributeError, match="exported transformer has no .*before the export"),
    ):
        pipe.transformer.load_lora_adapter({})


@pytest.mark.parametrize("change", [lambda w: w.mul_(1.01), lambda w: w.add_(1e-3)])
def test_fine_tuned_weights(pipe, exported, change):
    with torch.no_grad():
        change(pipe.transformer.transformer_blocks[1].attn1.to_v.weight)
    with pytest.raises(InvalidInputError, match="other weights"):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)


def test_files_without_a_hash_still_run(pipe, exported, caplog):
    graph = onnx.load(exported)
    kept = [e for e in graph.metadata_props if e.key != "rainfusion.weights_sha256"]
    assert len(kept) < len(graph.metadata_props)
    del graph.metadata_props[:]
    graph.metadata_props.extend(kept)
    path = exported.with_name("without.onnx")
    onnx.save(graph, path)
    with caplog.at_level(logging.INFO, "rainfusion_trt"):
        Pipeline(pipe=pipe, onnx=path, sparsity=0.0).close()
    assert "does not tell its own, export it again" in caplog.text


def test_size_defaults_to_the_exported_one(pipe, fixed):
    with Pipeline(pipe=pipe, onnx=fixed, sparsity=0.0) as pipeline:
        assert pipeline(**CALL, seed=0).frames.shape == (1, 3, 16, 8, 12)
        with pytest.raises(InvalidInputError, match="exported for 9x64x96 only"):
            pipeline(**CALL, seed=0, height=128)


def test_sparse_is_an_error_before_anything_is_loaded(pipe, exported):
    with pytest.raises(BackendUnavailableError, match="dense body.*allow_dense=True"):
        Pipeline(pipe=pipe, onnx=exported)
    with (
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0) as pipeline,
        pytest.raises(BackendUnavailableError, match="dense body"),
    ):
        pipeline(**CALL, seed=0, sparsity=0.5)


def test_dense_is_said_and_recorded_where_it_is_allowed(pipe, exported, caplog):
    with (
        caplog.at_level(logging.INFO, "rainfusion_trt"),
        Pipeline(pipe=pipe, onnx=exported, allow_dense=True) as pipeline,
    ):
        out = pipeline(**CALL, seed=0, profile=True)
    assert out.sparsity == (0.0, 0.0)
    # Guidance is one call of batch 2; two layers.
    assert [(step.routed, step.dense, step.density) for step in out.steps] == [(0, 2, 1.0)] * 2
    assert [row.sparsity for row in out.timings] == [0.0, 0.0]
    assert "this run is dense" in caplog.text
    assert "sparsity per step: 2 x 0" in caplog.text


def test_explicit_backend_beside_an_onnx_file(pipe, exported):
    with Pipeline(pipe=pipe, onnx=exported, backend="torch") as pipeline:
        assert pipeline.backend == "torch"
        assert pipeline(**CALL, seed=0).sparsity == (0.0, 0.5)


def test_a_pipeline_in_use_is_refused(pipe, exported):
    with (
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0),
        pytest.raises(InvalidInputError, match="already belongs to a Pipeline"),
    ):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0)


def test_transformer_of_another_network(exported):
    config = {**MODEL.config("tiny"), "num_layers": 1}
    other = MODEL.create(config, dtype=torch.float32, seed=0)
    with pytest.raises(EngineLoadError, match="num_layers 2 instead of 1"):
        Pipeline(pipe=tiny_pipeline(MODEL, other, size=SIZE), onnx=exported, sparsity=0.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"model": "cogvideox1.5-5b"},
            "model= says cogvideox1.5-5b, the ONNX file .* cogvideox-5b",
        ),
        ({"method": "rainfusion2"}, "exported with method='rainfusion'"),
        ({"sink_frames": 2}, "exported with sink_frames=1"),
    ],
)
def test_what_does_not_fit_the_file(pipe, exported, arguments, words):
    with pytest.raises(InvalidInputError, match=words):
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0, **arguments)


def test_attention_kwargs_are_refused(pipe, exported):
    with (
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0) as pipeline,
        pytest.raises(UnsupportedError, match="attention_kwargs"),
    ):
        pipeline(**CALL, seed=0, attention_kwargs={"scale": 0.5})


def test_missing_attributes_say_why(pipe, exported):
    with (
        Pipeline(pipe=pipe, onnx=exported, sparsity=0.0),
        pytest.raises(AttributeError, match="exported transformer has no 'fuse_qkv_projections'"),
    ):
        pipe.fuse_qkv_projections()


def small_graph(path: Path, dtype: int, **metadata: str) -> Path:
    value = {n: onnx.helper.make_tensor_value_info(n, dtype, [1, "n"]) for n in ("x", "y")}
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "graph", [value["x"]], [value["y"]])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)])
    model.ir_version = 10
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def test_backend_alone(tmp_path):
    backend = OnnxRuntimeBackend(small_graph(tmp_path / "x.onnx", onnx.TensorProto.FLOAT16))
    x = torch.randn(1, 5).half()
    torch.testing.assert_close(backend.run({"x": x})["y"], x)
    assert "CPUExecutionProvider" in backend.describe()
    with pytest.raises(InvalidInputError, match="x is float32"):
        backend.run({"x": x.float()})


def test_bfloat16_on_the_cpu(tmp_path):
    path = small_graph(tmp_path / "x.onnx", onnx.TensorProto.BFLOAT16)
    with pytest.raises(UnsupportedError, match="--dtype fp32"):
        OnnxRuntimeBackend(path)


def test_cuda_without_its_provider(tmp_path):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("onnxruntime-gpu is installed")
    path = small_graph(tmp_path / "x.onnx", onnx.TensorProto.FLOAT)
    with pytest.raises(BackendUnavailableError, match="pip install onnxruntime-gpu"):
        OnnxRuntimeBackend(path, "cuda")


def test_files_that_are_no_exported_models(tmp_path):
    plain = small_graph(tmp_path / "plain.onnx", onnx.TensorProto.FLOAT)
    with pytest.raises(InvalidInputError, match="no rainfusion.model"):
        graph_of_onnx(plain)
    garbage = tmp_path / "garbage.onnx"
    garbage.write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidInputError, match="not a readable ONNX file"):
        graph_of_onnx(garbage)
    with pytest.raises(InvalidInputError, match="cannot load"):
        OnnxRuntimeBackend(with_unknown_operator(tmp_path / "unknown.onnx"))


def with_unknown_operator(path: Path) -> Path:
    graph = onnx.load(small_graph(path, onnx.TensorProto.FLOAT))
    graph.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(graph, path)
    return path


def test_sizes():
    assert parse_size("49x480x720") == VideoSize(49, 480, 720)
    assert parse_size(None) is None
    with pytest.raises(InvalidInputError, match="FRAMESxHEIGHTxWIDTH"):
        parse_size("49x480")


def test_takes_its_turn_in_offloading(pipe, exported):
    """diffusers' hooks ask a module where its first parameter is, and may move it."""
    accelerate = pytest.importorskip("accelerate")
    with Pipeline(pipe=pipe, onnx=exported, sparsity=0.0) as pipeline:
        wanted = pipeline(**CALL, seed=0).frames
        _, hook = accelerate.cpu_offload_with_hook(pipe.transformer, "cpu")
        try:
            assert torch.equal(pipeline(**CALL, seed=0).frames, wanted)
        finally:
            hook.remove()
