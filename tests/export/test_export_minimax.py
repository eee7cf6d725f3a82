"""An exported tiny MiniMax-H3 against PyTorch, and built by TensorRT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from diffusers.modular_pipelines import MiniMaxH3Blocks
from diffusers.modular_pipelines.minimax_h3.denoise import MiniMaxH3LoopDenoiser
from typer.testing import CliRunner

from helpers.built_engines import built_for_rtx
from helpers.minimax_calls import GRID, call_of
from rainfusion_trt import load_graph
from rainfusion_trt.errors import (
    BackendUnavailableError,
    DenseAttentionError,
    EngineLoadError,
    InvalidInputError,
    UnsupportedError,
)
from rainfusion_trt.export.cli import app
from rainfusion_trt.graph_file import read_onnx
from rainfusion_trt.models import get_model
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

MODEL = get_model("minimax-h3")
ONE_LAYER = MODEL.config("tiny", layers=1)
SIZE = ("--frames", "22", "--height", "128", "--width", "192")
# As in test_exported_models.py: two float32 programs that order sums differently.
TOLERANCE = 1e-4
OTHER = (2, 3, 4)  # the shortest clip that there is


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(ONE_LAYER, dtype=torch.float32, seed=3)


@pytest.fixture(scope="module")
def path(transformer, tmp_path_factory):
    """As the command line writes it, of a folder of a transformer."""
    folder = tmp_path_factory.mktemp("minimax")
    transformer.save_pretrained(folder / "transformer_ref")
    model = ("--model", MODEL.name, "--checkpoint", str(folder / "transformer_ref"))
    output = ("--output", str(folder / "h3.onnx"))
    result = CliRunner().invoke(app, [*model, *SIZE, "--dtype", "fp32", "--dynamic", *output])
    assert result.exit_code == 0, result.output
    return folder / "h3.onnx"


@pytest.mark.parametrize("grid", [GRID, OTHER], ids=str)
def test_one_graph_equals_pytorch_at_unseen_sizes(path, transformer, grid):
    """And with each of what may stand before the clip: "minimax-h3" has a graph for all tasks."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for seed, task in enumerate(("text", "keyframes", "references")):
        call = call_of(task, batch=1 + seed % 2, seed=seed, grid=grid)
        feed = {name: t.contiguous().numpy() for name, t in MODEL.graph_inputs(call).items()}
        feed["sparsity"] = torch.zeros(1).numpy()
        actual = [torch.from_numpy(array) for array in session.run(list(MODEL.outputs), feed)]
        with torch.no_grad():
            expected = transformer(**call, return_dict=False)
        assert [a.shape for a in actual] == [e.shape for e in expected]
        for a, e in zip(actual, expected, strict=True):
            assert float((a - e).abs().max() / e.abs().max()) <= TOLERANCE, task


def test_graph_is_what_the_runtime_expects(path):
    file = read_onnx(path)
    assert {tensor.name: list(tensor.shape) for tensor in file.inputs} == {
        "hidden_states": ["batch", "video_tokens", 96],
        "audio_hidden_states": ["batch", "audio_tokens", 8],
        "encoder_hidden_states": ["batch", "text_tokens", 32],
        "timestep": [4],
        "timestep_indices": ["packed_tokens"],
        "token_tags": ["packed_tokens"],
        "position_ids": ["packed_tokens", 3],
        "video_indices": ["video_tokens"],
        "audio_indices": ["audio_tokens"],
        "text_indices": ["text_tokens"],
        "grid": ["grid_frames", "grid_height", "grid_width"],
        "sparsity": [1],
    }
    assert {tensor.name: list(tensor.shape) for tensor in file.outputs} == {
        "sample": ["batch", "video_tokens", 96],
        "audio_sample": ["batch", "audio_tokens", 8],
    }


def test_attention_of_the_sequence_is_the_operator_and_of_the_refiner_is_not(path):
    graph = onnx.load(path).graph
    (node,) = [n for n in graph.node if n.op_type == "RainFusionAttention"]
    assert node.name == "transformer_blocks.0.attn/RainFusionAttention"
    assert next(a.s for a in node.attribute if a.name == "text") == b"first"
    softmax = [n.name for n in graph.node if n.op_type == "Softmax"]
    assert softmax == ["token_refiner.refiner_blocks.0.attn/Softmax"]


def ranges(text: tuple[int, ...], video: tuple[int, ...], audio: int) -> dict[str, Any]:
    """Shapes of a recipe, of the fewest, the usual and the most tokens."""
    packed = [t + v + audio for t, v in zip(text, video, strict=True)]

    def shape(sizes: Any, *rest: int, before: tuple[int, ...] = ()) -> dict[str, list[int]]:
        bounds = zip(("min", "opt", "max"), sizes, strict=True)
        return {bound: [*before, size, *rest] for bound, size in bounds}

    return {
        "hidden_states": shape(video, 96, before=(1,)),
        "audio_hidden_states": [1, audio, 8],
        "encoder_hidden_states": shape(text, 32, before=(1,)),
        **{name: shape(packed) for name in ("timestep_indices", "token_tags")},
        "position_ids": shape(packed, 3),
        "video_indices": shape(video),
        "audio_indices": [audio],
        "text_indices": shape(text),
        "grid": list(GRID),
    }


# -- loaded, in diffusers' blocks ------------------------------------------------------------------


def steps_of(components: Any, task: str) -> list[torch.Tensor]:
    """What the denoising block of diffusers gets of a transformer, for two steps of a call."""
    denoiser = MiniMaxH3LoopDenoiser()
    call = call_of(task)
    packed = ("token_tags", "position_ids", "video_indices", "audio_indices", "text_indices")
    first = torch.full_like(call["timestep"][:1], 0.2)  # where all are as noisy as one another
    plan = [(first, torch.zeros_like(call["token_tags"]))]
    state = SimpleNamespace(
        row_timestep_plan=[*plan, (call["timestep"], call["timestep_indices"])],
        denoiser_input_fields={name: call[name] for name in packed} | {"num_audio_latents": 19},
        latents=call["hidden_states"][0],
        audio_latents=call["audio_hidden_states"][0],
        prompt_embeds=call["encoder_hidden_states"],
        attention_kwargs=None,
    )
    given = []
    for step, (levels, _) in enumerate(state.row_timestep_plan):
        denoiser(components, state, i=step, t=levels[0])
        given += [state.noise_pred, state.audio_noise_pred]
    return given


def test_diffusers_blocks_run_the_file_in_place_of_the_transformer(path, transformer):
    """They pass what is in the signature of `forward`, and as many noise levels as there are."""
    graph = load_graph(path, sparsity=0.0, device="cpu")
    pipe = MiniMaxH3Blocks().init_pipeline()
    pipe.update_components(transformer=graph)
    assert list(graph.config.patch_size) == [1, 2, 2] and graph.dtype == torch.float32
    for task in ("keyframes", "references"):
        expected = steps_of(SimpleNamespace(transformer=transformer), task)
        for a, e in zip(steps_of(pipe, task), expected, strict=True):
            assert float((a - e).abs().max() / e.abs().max()) <= TOLERANCE
    output = graph(**call_of("text"))
    assert type(output) is type(transformer(**call_of("text")))
    graph.close()
    with pytest.raises(InvalidInputError, match="closed"):
        graph(**call_of("text"))


def test_a_loaded_graph_is_not_dense_in_silence(path, monkeypatch, caplog):
    with pytest.raises(BackendUnavailableError, match="pass sparsity=0 or allow_dense=True"):
        load_graph(path, device="cpu")
    with load_graph(path, device="cpu", allow_dense=True) as graph:
        assert "this run is dense" in caplog.text
        graph(**call_of("text"))
        for wrong in (1.0, -0.1, "half"):
            with pytest.raises(InvalidInputError, match="sparsity is"):
                graph.set_sparsity(wrong)
    monkeypatch.setattr(OnnxRuntimeBackend, "sparse", True)  # as an engine says
    with load_graph(path, sparsity=0.75, device="cpu") as graph:
        assert graph.sparsity.tolist() == [0.75]
        with pytest.raises(DenseAttentionError, match="0.75"):
            graph(**call_of("text", grid=OTHER))
        graph.set_sparsity(0.0)
        graph(**call_of("text", grid=OTHER))


def test_what_is_no_graph_is_one_line(path, tmp_path):
    with pytest.raises(InvalidInputError, match=r"gone\.onnx"):
        load_graph(tmp_path / "gone.onnx")
    with pytest.raises(EngineLoadError, match="metadata.json"):
        load_graph(tmp_path)
    with pytest.raises(UnsupportedError, match="cuda_graph=True needs an engine"):
        load_graph(path, device="cpu", cuda_graph=True)


@pytest.mark.tensorrt
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(plugin_library, tmp_path):
    """In bfloat16, of which the ends of the network and all that is of time are kept out."""
    from rainfusion_trt.export import export_model

    mixed = MODEL.create(ONE_LAYER, dtype=torch.bfloat16)
    file = export_model(MODEL, mixed, MODEL.tiny_size, output=tmp_path / "m.onnx", dynamic=True)
    weights = {w.name: w.data_type for w in onnx.load(file.path).graph.initializer}
    kept = [n for n, kind in weights.items() if kind == onnx.TensorProto.FLOAT and "." in n]
    first = {name.partition(".")[0] for name in kept}
    assert first == {"proj_in", "audio_proj_in", "time_embedder", "proj_out", "audio_proj_out"}
    clip = GRID[0] * GRID[1] * GRID[2]
    frame = GRID[1] * GRID[2]
    built = built_for_rtx(
        file.path,
        plugin_library,
        tmp_path / "e",
        model="minimax-h3",
        precision="bfloat16",
        shapes={"clip": ranges((8, 30, 64), (clip, clip, clip + 2 * frame), 38)},
    )
    assert built.plugin_layers == 1 and built.model == "minimax-h3"
    assert tuple(record.name for record in built.outputs) == MODEL.outputs
    names = [given.name for given in MODEL.inputs]
    assert [record.name for record in built.inputs] == [*names, "sparsity"]


def test_the_recipe_is_of_the_usual_clip():
    """Its shapes are those of `extents`, and the most those of two keyframes."""
    from rainfusion_trt.engine.recipe import load_recipe

    config = MODEL.config()
    extents = MODEL.extents(config, MODEL.defaults.size, 1)
    (shapes,) = load_recipe("minimax-h3").shapes.values()
    for given in MODEL.inputs:
        if given.name != "timestep":
            assert shapes[given.name].opt == given.shape(extents, config), given.name
    frame = extents["grid_height"] * extents["grid_width"]
    for bound in ("min", "max"):
        text, video, sound, packed = (
            getattr(shapes[name], bound)[0]
            for name in ("text_indices", "video_indices", "audio_indices", "token_tags")
        )
        assert packed == text + video + sound
        assert video == extents["video_tokens"] + (2 * frame if bound == "max" else 0)
