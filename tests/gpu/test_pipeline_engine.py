"""`Pipeline` with a real engine of a tiny CogVideoX, held against the PyTorch backend.

Both round every activation to float16 (2^-11), in other places; two layers and guidance, which
multiplies what the two halves of a batch differ in by 6, leave errors near 1e-2 after three steps.
"""

from __future__ import annotations

import pytest
import torch

from rainfusion_trt import Pipeline
from rainfusion_trt.engine import EngineRecipe, build_engine
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.native import Precision, load_library
from rainfusion_trt.operator.settings import AttentionSettings

pytestmark = [pytest.mark.gpu, pytest.mark.tensorrt, pytest.mark.xdist_group(__name__)]

MODEL = get_model("cogvideox")
SIZE = VideoSize(33, 128, 192)  # 9 x 8 x 12 tokens: enough windows to leave some out
SCHEDULE = [0.0, 0.5, 0.3]
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": len(SCHEDULE),
    "output_type": "latent",
}
TOLERANCE = 2e-2


def tiny_transformer() -> torch.nn.Module:
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float16, seed=0)


@pytest.fixture
def pipe():
    from helpers.cogvideox_pipeline import tiny_pipeline

    made = tiny_pipeline(MODEL, tiny_transformer(), size=SIZE).to(torch.float16)
    made.set_progress_bar_config(disable=True)
    return made.to("cuda")


@pytest.fixture(scope="module")
def engine(tmp_path_factory, plugin_library):
    from rainfusion_trt.export import export_model

    path = tmp_path_factory.mktemp("engine") / "tiny.onnx"
    export_model(MODEL, tiny_transformer(), SIZE, output=path)
    recipe = EngineRecipe(model=MODEL.name, precision="float16")
    return build_engine(path, recipe=recipe, plugin=plugin_library)


def relative_error(out: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((out.float() - wanted.float()).norm() / wanted.float().norm()).item()


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("schedule", [[0.0] * 3, SCHEDULE])
def test_engine_equals_torch_backend(pipe, engine, cuda_graph, schedule):
    """Also while the sparsity changes between replays of one graph."""
    with Pipeline(pipe=pipe, backend="torch") as pipeline:
        wanted = pipeline(**CALL, seed=0, schedule=schedule).frames
    with Pipeline(pipe=pipe, engine=engine, cuda_graph=cuda_graph) as pipeline:
        out = pipeline(**CALL, seed=0, schedule=schedule, profile=True)
        again = pipeline(**CALL, seed=0, schedule=schedule).frames
    assert out.backend in ("tensorrt", "tensorrt_rtx")
    assert out.sparsity == tuple(schedule)
    assert relative_error(out.frames, wanted) < TOLERANCE
    torch.testing.assert_close(again, out.frames, atol=0, rtol=0)
    assert all(0 < row.transformer_ms <= row.total_ms for row in out.timings)


@pytest.fixture(scope="module")
def eight_bit(tmp_path_factory, plugin_library):
    from rainfusion_trt.export import export_model

    try:
        library = load_library(plugin_library)
        library.check_precision(Precision.BITS_8, *torch.cuda.get_device_capability())
    except UnsupportedError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("eight_bit") / "tiny.onnx"
    settings = AttentionSettings(precision="8bit")
    export_model(MODEL, tiny_transformer(), SIZE, batch=1, output=path, settings=settings)
    recipe = EngineRecipe(model=MODEL.name, precision="float16")
    return build_engine(path, recipe=recipe, plugin=plugin_library)


def test_an_engine_of_8_bits(pipe, eight_bit):
    """In either precision it is nearer to the operator in the same one than to the other."""
    call = {**CALL, "guidance_scale": 1.0, "seed": 0, "schedule": SCHEDULE}
    precisions = ("16bit", "8bit")
    with Pipeline(pipe=pipe, backend="torch", precision="8bit") as pipeline:
        wanted = {name: pipeline(**call, precision=name).frames for name in precisions}
    steps = ("16bit", "8bit", "16bit")
    mixed = {}
    for cuda_graph in (False, True):
        with Pipeline(pipe=pipe, engine=eight_bit, cuda_graph=cuda_graph) as pipeline:
            for name in precisions:
                out = pipeline(**call, precision=name)
                assert out.precision == (name,) * 3
                errors = [relative_error(out.frames, wanted[other]) for other in precisions]
                assert errors[precisions.index(name)] == min(errors)
                assert name == "8bit" or min(errors) < TOLERANCE
            mixed[cuda_graph] = pipeline(**call, precision=steps)
            assert mixed[cuda_graph].precision == steps
    # A graph that is captured anew at each change, and none.
    torch.testing.assert_close(mixed[True].frames, mixed[False].frames, atol=0, rtol=0)


def test_sparsity_changes_the_result(pipe, engine):
    with Pipeline(pipe=pipe, engine=engine, dense_fraction=0.0) as pipeline:
        dense = pipeline(**CALL, seed=0, sparsity=0.0).frames
        sparse = pipeline(**CALL, seed=0, sparsity=0.8).frames
    assert relative_error(sparse, dense) > 1e-3


def test_other_size_than_the_engines(pipe, engine):
    with (
        Pipeline(pipe=pipe, engine=engine) as pipeline,
        pytest.raises(InvalidInputError, match="exported for 33x128x192 only"),
    ):
        pipeline(**{**CALL, "height": 64}, seed=0)


def test_pipeline_without_text_encoder_and_vae(pipe, engine):
    """The benchmarks' way: the engine alone says where to compute."""
    text = torch.randn(1, 16, 32, device="cuda", dtype=torch.float16)
    pipe.register_modules(tokenizer=None, text_encoder=None, vae=None)
    call = {k: v for k, v in CALL.items() if k != "prompt"}
    with Pipeline(pipe=pipe, engine=engine) as pipeline:
        frames = pipeline(**call, prompt_embeds=text, negative_prompt_embeds=-text, seed=0).frames
    assert frames.is_cuda
    assert bool(frames.isfinite().all())


def test_cpu_offload_moves_the_rest(pipe, engine):
    pytest.importorskip("accelerate")
    with Pipeline(pipe=pipe.to("cpu"), engine=engine, cpu_offload=True) as pipeline:
        frames = pipeline(**{**CALL, "output_type": "np"}, seed=0).frames
        assert pipe.text_encoder.device.type == "cpu"
    assert frames.shape == (1, *(33, 128, 192), 3)
