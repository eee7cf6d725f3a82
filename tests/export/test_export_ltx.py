"""Exported tiny LTX models against PyTorch, and built by TensorRT."""

from __future__ import annotations

from dataclasses import replace

import onnx
import onnxruntime
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline

import rainfusion_trt
from helpers.built_engines import built_for_rtx
from helpers.ltx_models import errors, run
from helpers.ltx_pipelines import arguments_of, call_with_conditions, condition_pipeline
from helpers.sparse_graph import run_sparse
from rainfusion_trt import Pipeline
from rainfusion_trt.engine.onnx_file import read_for_build
from rainfusion_trt.engine.shapes import clip_shapes
from rainfusion_trt.errors import UnsupportedError
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.models import VideoSize

# Both classes. That of LTX-2 takes torch a minute and a half, for one layer.
DYNAMIC = ["ltx-video-2b", pytest.param("ltx-2.3", marks=pytest.mark.rehearsal)]
# Neither is what was traced; one row of tokens, and one frame.
SIZES = (
    (VideoSize(33, 96, 128), 3, 40),
    (VideoSize(25, 32, 192), 1, 7),
    (VideoSize(1, 96, 64), 2, 9),
)

# As in test_exported_models.py: two float32 programs that order sums differently.
TOLERANCE = 1e-4


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_graph_equals_pytorch_at_unseen_sizes(exported, name):
    dynamic = exported(name, dynamic=True, layers=1)
    model, transformer = dynamic.model, dynamic.transformer
    session = onnxruntime.InferenceSession(dynamic.path, providers=["CPUExecutionProvider"])
    for size, batch, text_tokens in SIZES:
        inputs = model.example_inputs(transformer, size, batch=batch, seed=size.width)
        for given in model.inputs:
            if "text_tokens" in given.axes:
                inputs[given.name] = inputs[given.name][:, :text_tokens].contiguous()
        timestep = inputs["timestep"]  # another one per token, with a fraction
        inputs["timestep"] = torch.linspace(0, 990.5, timestep.numel()).reshape(timestep.shape)
        call = model.forward_kwargs(inputs)
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        actual = session.run(list(model.outputs), {**feed, "sparsity": torch.zeros(1).numpy()})
        actual = [torch.from_numpy(array) for array in actual]
        expected = run(transformer, call)
        assert [a.shape for a in actual] == [e.shape for e in expected]
        assert max(errors(actual, expected)) <= TOLERANCE
        inputs = model.example_inputs(transformer, size, batch=batch)
        shapes = {key: tuple(tensor.shape) for key, tensor in inputs.items()}
        assert clip_shapes(model, read_for_build(dynamic.path), size, batch) == shapes


INPUTS = {
    "ltx-video-2b": {
        "hidden_states": ["batch", "packed_tokens", 8],
        "encoder_hidden_states": ["batch", "text_tokens", 32],
        "timestep": ["batch", "packed_tokens"],
        "encoder_attention_mask": ["batch", "text_tokens"],
        "video_coords": [3, "packed_tokens"],
        "grid": ["grid_frames", "grid_height", "grid_width"],
        "sparsity": [1],
    },
    "ltx-2.3": {
        "hidden_states": ["batch", "packed_tokens", 8],
        "audio_hidden_states": ["batch", "audio_tokens", 6],
        "encoder_hidden_states": ["batch", "text_tokens", 256],
        "audio_encoder_hidden_states": ["batch", "text_tokens", 32],
        "encoder_attention_mask": ["batch", "text_tokens"],
        "audio_encoder_attention_mask": ["batch", "text_tokens"],
        "timestep": ["batch", "packed_tokens"],
        "audio_timestep": ["batch", "audio_tokens"],
        "sigma": ["batch"],
        "audio_sigma": ["batch"],
        "video_coords": [3, "packed_tokens", 2],
        "audio_coords": [1, "audio_tokens", 2],
        "grid": ["grid_frames", "grid_height", "grid_width"],
        "sparsity": [1],
    },
}
OUTPUTS = {
    "sample": ["batch", "packed_tokens", 8],
    "audio_sample": ["batch", "audio_tokens", 6],
}


@pytest.mark.parametrize("name", DYNAMIC)
def test_graph_is_what_the_runtime_expects(exported, name):
    dynamic = exported(name, dynamic=True, layers=1)
    file = read_onnx(dynamic.path)
    assert {tensor.name: list(tensor.shape) for tensor in file.inputs} == INPUTS[name]
    found = {tensor.name: list(tensor.shape) for tensor in file.outputs}
    assert found == {output: OUTPUTS[output] for output in dynamic.model.outputs}


@pytest.mark.parametrize("name", DYNAMIC)
def test_only_self_attention_of_the_video_is_the_operator(exported, name):
    dynamic = exported(name, dynamic=True, layers=1)
    graph = onnx.load(dynamic.path).graph
    (node,) = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert node.name == "transformer_blocks.0.attn1/RainFusionAttention"
    place = dynamic.model.beside.encode()
    assert next(a.s for a in node.attribute if a.name == "text") == place
    softmax = [n.name for n in graph.node if n.op_type == "Softmax"]
    streams = ["audio_attn1", "attn2", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn"]
    others = streams if name == "ltx-2.3" else ["attn2"]
    assert softmax == [f"transformer_blocks.0.{other}/Softmax" for other in others]


def test_pipeline_runs_the_file_in_place_of_the_transformer(exported):
    dynamic = exported("ltx-video-2b", dynamic=True, layers=1)
    pipe = LTXPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, dynamic.transformer)
    pipe.set_progress_bar_config(disable=True)
    text = torch.randn(2, 128, 32, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(128) < 9)[None]
    call = {
        "prompt_embeds": text[:1],
        "negative_prompt_embeds": text[1:],
        "prompt_attention_mask": mask,
        "negative_prompt_attention_mask": mask,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    size = {"num_frames": 25, "height": 64, "width": 128}  # not what was traced
    expected = pipe(**call, **size, generator=torch.Generator().manual_seed(0)).frames
    options = {"backend": "onnxruntime", "sparsity": 0.0, "device": "cpu"}
    with Pipeline(pipe=pipe, onnx=dynamic.path, **options) as pipeline:
        assert pipeline.model is dynamic.model
        actual = pipeline(**call, **size, seed=0).frames
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)  # guidance times 1e-6


# -- conditions on later frames --------------------------------------------------------------------

CLIP = VideoSize(49, 256, 512)  # 7 x 8 x 16 tokens, of which piecewise leaves some out
# None; the first frame; also an image and a clip later on, of one and of two latent frames.
CONDITIONS = ((), ((0, 1),), ((0, 1), (2, 1), (3, 9)))
BESIDE = (0, 0, 3 * 128)


@pytest.fixture(scope="module")
def conditioned():
    """Name and transformer -> a call of diffusers' pipeline for each of `CONDITIONS`."""
    made = {}

    def calls(name, transformer):
        if name not in made:
            made[name] = [call_with_conditions(transformer, CLIP, c) for c in CONDITIONS]
        return made[name]

    return calls


@pytest.mark.parametrize("name", DYNAMIC)
def test_one_graph_takes_conditions_on_any_frames(exported, conditioned, name):
    dynamic = exported(name, dynamic=True, layers=1)
    model, transformer = dynamic.model, dynamic.transformer
    session = onnxruntime.InferenceSession(dynamic.path, providers=["CPUExecutionProvider"])
    for call, beside in zip(conditioned(name, transformer), BESIDE, strict=True):
        inputs = model.graph_inputs(call)
        assert inputs["grid"].shape == (7, 8, 16)
        assert inputs["hidden_states"].shape[1] == 7 * 128 + beside
        feed = {key: tensor.contiguous().numpy() for key, tensor in inputs.items()}
        actual = session.run(list(model.outputs), {**feed, "sparsity": torch.zeros(1).numpy()})
        expected = run(transformer, call)
        assert max(errors(map(torch.from_numpy, actual), expected)) <= TOLERANCE


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_sparse_graph_computes_what_an_enabled_transformer_does(exported, conditioned, name):
    """By the reference of the operator, with tokens beside the grid and without."""
    dynamic = exported(name, dynamic=True, layers=1)
    model, transformer = dynamic.model, dynamic.transformer
    for call in conditioned(name, transformer)[::2]:
        dense = run(transformer, call)
        routing = rainfusion_trt.enable(transformer, sparsity=0.6)
        try:
            expected = run(transformer, call)
            assert routing.report().routed == ("transformer_blocks.0.attn1",)
        finally:
            rainfusion_trt.disable(transformer)
        actual = run_sparse(dynamic.path, model.graph_inputs(call), 0.6)
        assert max(errors(actual, expected)) <= TOLERANCE
        assert errors(expected, dense)[0] > 100 * TOLERANCE


def test_a_pipeline_with_later_conditions_runs_the_file(exported):
    dynamic = exported("ltx-video-2b", dynamic=True, layers=1)
    pipe = condition_pipeline(dynamic.transformer)
    expected = pipe(**arguments_of(pipe, CLIP, CONDITIONS[-1])).frames
    options = {"backend": "onnxruntime", "sparsity": 0.0, "device": "cpu"}
    with Pipeline(pipe=pipe, onnx=dynamic.path, **options) as pipeline:
        actual = pipeline(**arguments_of(pipe, CLIP, CONDITIONS[-1])).frames
        # A graph without room says so before anything is encoded.
        inputs = pipeline.denoiser.backend.inputs
        shape = (2, 7 * 128 + 2 * 128, 8)
        inputs["hidden_states"] = replace(inputs["hidden_states"], max_shape=shape)
        pipe.vae.encode = None
        with pytest.raises(UnsupportedError, match="1280 in all.* up to 1152 .*condition_frames"):
            pipeline(**arguments_of(pipe, CLIP, CONDITIONS[-1]))
    assert max(errors([actual], [expected])) <= TOLERANCE


# Name, dtype, whether the shapes vary, and the sizes of the recipe. Exports of their own, half a
# minute each with the build.
ENGINES = [
    pytest.param(
        "ltx-video-2b",
        torch.float16,
        True,
        {
            "small": {"frames": 17, "height": 64, "width": 96, "batch": 2},
            "large": {
                "frames": 25,
                "height": 128,
                "width": 192,
                "batch": 2,
                "condition_frames": {"min": 0, "opt": 1, "max": 3},
            },
        },
        id="ltx-video-2b of two sizes",
    ),
    pytest.param("ltx-2.3", torch.bfloat16, False, {}, id="ltx-2.3"),
]


@pytest.mark.tensorrt
@pytest.mark.rehearsal
@pytest.mark.parametrize(("name", "dtype", "dynamic", "sizes"), ENGINES)
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(
    exported, plugin_library, tmp_path, name, dtype, dynamic, sizes
):
    file = exported(name, dtype, dynamic=dynamic, layers=1)
    built = built_for_rtx(
        file.path,
        plugin_library,
        tmp_path / "e",
        model=name,
        precision=str(dtype).removeprefix("torch."),
        sizes=sizes,
    )
    assert built.plugin_layers == 1 and built.model == name
    assert tuple(record.name for record in built.outputs) == file.model.outputs
    tokens = built.inputs[0].profiles.get("large")
    assert not sizes or (tokens.opt[1], tokens.max[1]) == (5 * 24, 7 * 24)
    assert [record.name for record in built.inputs] == [
        *(given.name for given in file.model.inputs),
        "sparsity",
    ]
