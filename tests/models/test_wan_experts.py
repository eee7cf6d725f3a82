"""Wan 2.2 A14B: two transformers that take turns, as tiny models on the CPU."""

from __future__ import annotations

import functools
import json

import onnx
import pytest
import torch
from typer.testing import CliRunner

import rainfusion_trt
from helpers.wan_pipeline import tiny_pipeline
from rainfusion_trt.cli import app
from rainfusion_trt.engine import EngineRecipe, build_engine, load_metadata
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.export.cli import app as exporter
from rainfusion_trt.graph_file import FusedLora
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator.settings import AttentionSettings

pytestmark = pytest.mark.usefixtures("one_thread")
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu")  # also beside a GPU
MODEL = get_model("wan2.2-a14b")
SIZE = VideoSize(25, 128, 128)  # 7 x 8 x 8 tokens: enough blocks for sparsity to show
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "guidance_scale_2": 3.0,
    "output_type": "latent",
}
BOUNDARY = 0.875


def expert(seed: int, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    return MODEL.create(MODEL.config("tiny"), dtype=dtype, seed=seed)


@pytest.fixture(scope="module")
def experts():
    return expert(0), expert(1)


@pytest.fixture
def pipe(experts):
    return tiny_pipeline(experts[0], transformer_2=experts[1], boundary_ratio=BOUNDARY)


@pytest.fixture(scope="module")
def exported(experts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("experts")
    paths = []
    for component, transformer in zip(MODEL.components, experts, strict=True):
        path = folder / f"{component}.onnx"
        export_model(MODEL, transformer, SIZE, output=path, component=component)
        paths.append(path)
    return paths


def plain(pipe) -> torch.Tensor:
    return pipe(**CALL, generator=torch.Generator().manual_seed(0)).frames


def test_it_is_two_transformers_of_the_14b():
    assert MODEL.components == ("transformer", "transformer_2")
    assert MODEL.config() == get_model("wan2.1-14b").config()
    one = expert(0)
    assert model_of(one).name == "wan2.1-14b"
    assert model_of(one, components=2) is MODEL


def test_pytorch_routes_both_and_gives_both_back(pipe, experts):
    expected = plain(pipe)
    calls = dict.fromkeys(MODEL.components, 0)
    early = int((pipe.scheduler.timesteps >= 1000 * BOUNDARY).sum())
    assert 0 < early < 4
    with Pipeline(pipe=pipe, backend="torch", sparsity=0.0) as pipeline:
        assert pipeline.model is MODEL

        def count(name: str) -> None:
            calls[name] += 1

        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: count(name))
            for name, module in zip(calls, experts, strict=True)
        ]
        dense = pipeline(**CALL, seed=0).frames
        for hook in hooks:
            hook.remove()
        sparse = pipeline(**CALL, seed=0, sparsity=0.5, profile=True)
    assert calls == {"transformer": 2 * early, "transformer_2": 2 * (4 - early)}  # guidance
    # Unit scale; guidance multiplies float32 rounding by up to 5 in each of four steps.
    torch.testing.assert_close(dense, expected, atol=2e-4, rtol=0)
    assert sparse.sparsity == (0.0, 0.5, 0.5, 0.5) and len(sparse.timings) == 4
    assert (sparse.frames - expected).abs().max() > 1e-2
    assert (pipe.transformer, pipe.transformer_2) == experts
    assert torch.equal(plain(pipe), expected)


@pytest.mark.parametrize(
    "files",
    [
        lambda first, second: {"onnx": first, "onnx_2": second},
        lambda first, second: {"onnx": {"transformer_2": second, "transformer": str(first)}},
    ],
    ids=["keywords", "mapping"],
)
def test_two_files_in_onnx_runtime(pipe, experts, exported, files):
    expected = plain(pipe)
    first, second = exported
    with Pipeline(pipe=pipe, **files(first, second), sparsity=0.0) as pipeline:
        assert pipeline.backend == "onnxruntime" and pipeline.model is MODEL
        result = pipeline(**CALL, seed=0).frames
    # Relative 1e-5 of two float32 implementations, through guidance and four steps.
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=0)
    assert (pipe.transformer, pipe.transformer_2) == experts


def test_the_second_one_in_8_bits_alone(pipe, experts, exported, tmp_path, caplog):
    """Both run in what both have, and that is said."""
    late = tmp_path / "late.onnx"
    settings = AttentionSettings(precision="8bit")
    export_model(
        MODEL, experts[1], SIZE, output=late, component=MODEL.components[1], settings=settings
    )
    with Pipeline(pipe=pipe, onnx=exported[0], onnx_2=late, sparsity=0.0) as pipeline:
        assert pipeline.precision == "16bit"
    assert "exported in 8 bits, and onnxruntime has 16 alone" in caplog.text


def test_parts_that_do_not_fit(pipe, experts, exported):
    first, second = exported
    with pytest.raises(InvalidInputError, match=r"onnx_2=.*transformer_2 is missing"):
        Pipeline(pipe=pipe, onnx=first, sparsity=0.0)
    with pytest.raises(InvalidInputError, match="holds transformer_2 in the place of transformer:"):
        Pipeline(pipe=pipe, onnx=second, onnx_2=first, sparsity=0.0)
    with pytest.raises(InvalidInputError, match=r"that of transformer is missing"):
        Pipeline(pipe=pipe, onnx={"transformer_2": second}, sparsity=0.0)
    with pytest.raises(InvalidInputError, match="'transformer_3'; .* transformer, transformer_2"):
        Pipeline(pipe=pipe, onnx={"transformer_3": first}, sparsity=0.0)
    with pytest.raises(InvalidInputError, match="onnx_2= has no place"):
        Pipeline(pipe=pipe, onnx={"transformer": first}, onnx_2=second, sparsity=0.0)
    with pytest.raises(UnsupportedError, match=r"has a transformer_2, which wan2\.1-14b does not"):
        Pipeline("wan2.1-14b", pipe=pipe, backend="torch")
    alone = tiny_pipeline(experts[0])
    with pytest.raises(InvalidInputError, match=r"needs pipe\.transformer_2"):
        Pipeline("wan2.2-a14b", pipe=alone, backend="torch")
    timeless = tiny_pipeline(experts[0], transformer_2=experts[1])
    with pytest.raises(InvalidInputError, match="boundary_ratio"):
        Pipeline(pipe=timeless, backend="torch")
    for module, own in ((pipe.transformer, experts[0]), (timeless.transformer_2, experts[1])):
        assert module is own and "forward" not in module.__dict__


def test_one_transformer_takes_no_second_file(experts, exported, tmp_path):
    single = get_model("wan2.1-14b")
    path = tmp_path / "single.onnx"
    export_model(single, experts[0], SIZE, output=path)
    with pytest.raises(InvalidInputError, match=r"wan2\.1-14b has one transformer"):
        Pipeline(pipe=tiny_pipeline(experts[0]), onnx=path, onnx_2=path, sparsity=0.0)


def test_checkpoints_hold_both(pipe, experts, tmp_path):
    expected = plain(pipe)
    pipe.save_pretrained(tmp_path)
    for component, transformer in zip(MODEL.components, experts, strict=True):
        loaded = MODEL.load(str(tmp_path), dtype=torch.float32, component=component)
        assert torch.equal(loaded.proj_out.weight, transformer.proj_out.weight)
    arguments = {"checkpoint": tmp_path, "dtype": torch.float32, "sparsity": 0.0}
    with Pipeline("wan2.2-a14b", backend="torch", **arguments) as pipeline:
        result = pipeline(**CALL, seed=0).frames
    torch.testing.assert_close(result, expected, atol=2e-4, rtol=0)


def test_the_exporter_asks_which_one(tmp_path):
    output = tmp_path / "expert.onnx"
    arguments = ["--model", "wan2.2-a14b", "--random-weights", "--config", "tiny"]
    arguments += ["--dtype", "fp32", "--output", str(output)]
    for wrong in ([], ["--component", "transformer_3"]):
        result = CliRunner().invoke(exporter, arguments + wrong)
        assert result.exit_code == 2 and "transformer and transformer_2" in result.output
        assert not output.exists()
    result = CliRunner().invoke(exporter, [*arguments, "--component", "transformer_2"])
    assert result.exit_code == 0, result.output
    properties = {p.key: p.value for p in onnx.load(output).metadata_props}
    assert properties["rainfusion.component"] == "transformer_2"
    assert properties["rainfusion.model"] == "wan2.2-a14b"


@pytest.mark.skipif(
    "tensorrt_rtx" not in available_flavours(), reason="TensorRT for RTX is not installed"
)
def test_an_engine_says_which_one_and_what_was_added(pipe, tmp_path, plugin_library):
    path = tmp_path / "late.onnx"
    late = expert(1, torch.float16)
    export_model(MODEL, late, MODEL.tiny_size, output=path, component="transformer_2")
    lora = {"file": "style.safetensors", "scale": 0.5, "layers": 4, "sha256": "ab" * 32}
    graph = onnx.load(path)
    graph.metadata_props.add(key="rainfusion.loras", value=json.dumps([lora]))
    onnx.save(graph, path)
    recipe = EngineRecipe(model="wan2.2-a14b", precision="float16")
    engine = build_engine(path, recipe=recipe, plugin=plugin_library, target="sm80")
    metadata = load_metadata(engine)
    assert metadata.component == "transformer_2" and metadata.loras == (FusedLora(**lora),)
    shown = CliRunner().invoke(app, ["info", "--engine", str(engine)])
    assert shown.exit_code == 0
    assert all(word in shown.output for word in ("transformer_2", "style.safetensors", "0.5"))
    with pytest.raises(InvalidInputError, match="engine= and engine_2="):
        Pipeline(pipe=pipe, engine_2=engine)
    with pytest.raises(InvalidInputError, match="holds transformer_2 in the place of transformer:"):
        Pipeline(pipe=pipe, engine=engine, engine_2=engine)
