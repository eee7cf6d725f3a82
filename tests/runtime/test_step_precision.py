"""Precision of steps in `Pipeline`: PyTorch, a graph that stands for an engine, ONNX Runtime."""

from __future__ import annotations

import functools
import inspect
import logging

import pytest
import torch

import rainfusion_trt
from helpers.cogvideox_pipeline import tiny_pipeline
from rainfusion_trt import load_graph
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime import loading
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend
from rainfusion_trt.runtime.precision import (
    PrecisionSchedule,
    may_be_eight_bit,
    precision_of_options,
    precision_per_step,
    read_precision,
)
from rainfusion_trt.runtime.report import CallReport, StepReport

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("cogvideox")
SIZE = VideoSize(frames=37, height=96, width=128)  # with windows that do not all meet
Pipeline = functools.partial(rainfusion_trt.Pipeline, device="cpu")
CALL = {
    "prompt": "a fox",
    "num_frames": SIZE.frames,
    "height": SIZE.height,
    "width": SIZE.width,
    "num_inference_steps": 3,
    "output_type": "latent",
    "guidance_scale": 1.0,
    "seed": 0,
}
FIRST = PrecisionSchedule(first=0.3)
STEPS = ("16bit", "8bit", "8bit")


@pytest.fixture
def pipe():
    made = tiny_pipeline(MODEL, size=SIZE)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Of the seed of `pipe`'s transformer, in 8 bits and in 16."""
    folder = tmp_path_factory.mktemp("exported")
    paths = {}
    for precision in ("8bit", "16bit"):
        transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32, seed=0)
        settings = AttentionSettings(precision=precision)
        paths[precision] = folder / f"{precision}.onnx"
        export_model(MODEL, transformer, SIZE, batch=1, output=paths[precision], settings=settings)
    return paths


# -- which steps ---------------------------------------------------------------------------------


def test_first_and_last_steps():
    assert precision_per_step(PrecisionSchedule(0.1, 0.05), 50) == (
        ("16bit",) * 5 + ("8bit",) * 42 + ("16bit",) * 3
    )
    assert precision_per_step(PrecisionSchedule(0.07), 100).count("16bit") == 7
    assert precision_per_step(PrecisionSchedule(last=0.1), 4) == ("8bit",) * 3 + ("16bit",)
    assert precision_per_step(PrecisionSchedule(0.6, 0.6), 4) == ("16bit",) * 4
    for wrong in (-0.1, 1.5, True, "0.1", float("nan")):
        with pytest.raises(InvalidInputError, match="must be a share of the steps"):
            PrecisionSchedule(first=wrong)


def test_ways_to_say_it():
    assert precision_per_step(read_precision("8bit"), 2) == ("8bit", "8bit")
    assert precision_per_step(read_precision(iter(["16bit", "8bit"])), 2) == ("16bit", "8bit")
    odd = read_precision(lambda step, steps: "8bit" if step % 2 else "16bit")
    assert precision_per_step(odd, 3) == ("16bit", "8bit", "16bit")
    assert [may_be_eight_bit(plan) for plan in ("8bit", "16bit", odd, ("16bit",), STEPS)] == [
        *(True, False, True, False, True)
    ]
    for wrong, words in (
        ("fp8", "precision is 'fp8': give one of 16bit, 8bit"),
        (8, "precision is 8: give"),
        (["8bit", "4bit"], "precision of step 1 is '4bit'"),
        ([], "precision has no values"),
    ):
        with pytest.raises(InvalidInputError, match=words):
            read_precision(wrong)
    with pytest.raises(InvalidInputError, match="has 3 values for 2 steps"):
        precision_per_step(STEPS, 2)
    with pytest.raises(InvalidInputError, match="precision of step 0 is None"):
        precision_per_step(lambda step, steps: None, 2)


def test_options_of_run():
    assert precision_of_options(None, None, None) is None
    assert precision_of_options("8bit", None, None) == "8bit"
    assert precision_of_options("8bit", 0.1, None) == PrecisionSchedule(0.1, 0.0)
    assert precision_of_options(None, None, 0.1) == PrecisionSchedule(0.0, 0.1)
    with pytest.raises(InvalidInputError, match="go with --attention-precision 8bit"):
        precision_of_options("16bit", 0.1, None)


def test_a_step_says_what_ran():
    eight = CallReport(2, precision="8bit")
    assert StepReport.of(0, 0.0, [eight]).precision == "8bit"
    rounded = {"q": "int8", "k": "int8", "p": "float8_e4m3fn", "v": "float8_e4m3fn"}
    assert StepReport.of(0, 0.0, [eight]).formats == rounded
    assert not StepReport.of(0, 0.5, [CallReport(0, 2, precision="8bit")]).formats
    assert StepReport.of(0, 0.5, [CallReport(0, 2, precision="8bit")]).precision == "16bit"
    assert StepReport.of(0, 0.5, [CallReport(0, 0, skipped=2, ran=False)]).precision is None
    assert StepReport.of(0, 0.5, [eight, CallReport(0, 0, ran=False)]).precision == "8bit"


# -- PyTorch -------------------------------------------------------------------------------------


def test_steps_in_pytorch(pipe, caplog):
    common = {"pipe": pipe, "backend": "torch", "schedule": [0.0, 0.5, 0.5]}
    with Pipeline(**common) as pipeline:
        wide = pipeline(**CALL)
        with pytest.raises(UnsupportedError, match="precision='8bit' was .* torch has 16 bits"):
            pipeline(**CALL, precision="8bit")
    with caplog.at_level(logging.INFO), Pipeline(**common, precision=FIRST) as pipeline:
        mixed = pipeline(**CALL, profile=True)
        again = pipeline(**CALL, precision="16bit")
    assert wide.precision == again.precision == ("16bit",) * 3
    assert torch.equal(again.frames, wide.frames)
    assert mixed.precision == STEPS and mixed.sparsity == (0.0, 0.5, 0.5)
    assert tuple(timing.precision for timing in mixed.timings) == STEPS
    assert "precision per step: 1 x 16bit, 2 x 8bit" in caplog.text
    # Some hundredths by rounding in two of three steps, and no more.
    error = (mixed.frames - wide.frames).norm() / wide.frames.norm()
    assert 0 < error < 0.2


def test_what_pytorch_has_not(pipe):
    with pytest.raises(UnsupportedError, match="no kernel for the textural heads of method 'rain"):
        Pipeline(pipe=pipe, method="rainfusion", precision="8bit")
    allegro = get_model("allegro")
    transformer = allegro.create(allegro.config("tiny", layers=1), dtype=torch.float32)
    settings = AttentionSettings(precision="8bit")
    with pytest.raises(UnsupportedError, match="no kernel for head size 96"):
        loading.TorchDenoiser(transformer, allegro, settings)


# -- graphs --------------------------------------------------------------------------------------


class AsEngine(OnnxRuntimeBackend):
    """A graph whose attention is not dense, as far as anybody asks it."""

    sparse = True
    bits: list[int] = []  # noqa: RUF012  (of all of them)

    def run(self, feed):
        AsEngine.bits.append(feed["bits"].shape[0] if "bits" in feed else 0)
        return super().run(feed)


@pytest.fixture
def as_engine(monkeypatch):
    monkeypatch.setattr(loading, "OnnxRuntimeBackend", AsEngine)
    monkeypatch.setattr(AsEngine, "bits", [])
    return AsEngine


def test_an_engine_of_8_bits_has_both(pipe, exported, as_engine):
    graph = {"pipe": pipe, "onnx": exported["8bit"], "sparsity": 0.0}
    for precision, bits in ((None, [8, 8, 8]), (FIRST, [16, 8, 8]), ("16bit", [16, 16, 16])):
        as_engine.bits.clear()
        with Pipeline(**graph, precision=precision) as pipeline:
            out = pipeline(**CALL)
        assert as_engine.bits == bits
        assert out.precision == tuple(f"{count}bit" for count in bits)


def test_an_engine_of_16_bits_has_no_others(pipe, exported, as_engine):
    graph = {"pipe": pipe, "onnx": exported["16bit"], "sparsity": 0.0}
    for precision in ("8bit", FIRST, STEPS):
        with pytest.raises(InvalidInputError, match="precision='8bit' was .*precision='16bit': le"):
            Pipeline(**graph, precision=precision)
    with Pipeline(**graph, precision="16bit") as pipeline:
        assert pipeline(**CALL).precision == ("16bit",) * 3
    assert as_engine.bits == [0, 0, 0]


def test_onnx_runtime_has_16_bits_and_says_so(pipe, exported, caplog):
    graph = {"pipe": pipe, "onnx": exported["8bit"], "sparsity": 0.0}
    with Pipeline(**graph) as pipeline:
        out = pipeline(**CALL)
    assert out.precision == ("16bit",) * 3
    assert "exported in 8 bits, and onnxruntime has 16 alone" in caplog.text
    with pytest.raises(UnsupportedError, match="'8bit' was asked for, and onnxruntime has 16 bits"):
        Pipeline(**graph, precision="8bit")


def test_a_graph_by_itself_runs_in_what_it_was_exported_in(
    exported, as_engine, caplog, monkeypatch
):
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32, seed=0)
    inputs = MODEL.example_inputs(transformer, SIZE, batch=1, device=torch.device("cpu"))
    call = MODEL.forward_kwargs(inputs)
    with load_graph(exported["8bit"], sparsity=0.0, device="cpu") as graph:
        graph(**call)
        graph.set_precision("16bit")
        graph(**call)
    with load_graph(exported["16bit"], sparsity=0.0, device="cpu") as graph:
        graph(**call)
        with pytest.raises(UnsupportedError, match="'8bit' cannot be set: onnxruntime has 16bit"):
            graph.set_precision("8bit")
    assert as_engine.bits == [8, 16, 0] and not caplog.text
    monkeypatch.setattr(as_engine, "sparse", False)
    with load_graph(exported["8bit"], sparsity=0.0, device="cpu") as graph:
        assert graph.precision == "16bit"
    assert "is of 8 bits, and onnxruntime has 16 alone" in caplog.text


def test_a_graph_by_itself_takes_what_the_transformer_takes(exported):
    """In order or by name; neither an argument that it has not nor tensors of two calls."""
    transformer = MODEL.create(MODEL.config("tiny"), dtype=torch.float32, seed=0)
    call = MODEL.forward_kwargs(MODEL.example_inputs(transformer, SIZE, batch=1))
    names = list(inspect.signature(transformer.forward).parameters)
    first = names[: names.index("timestep") + 1]
    rest = {name: value for name, value in call.items() if name not in first}
    with load_graph(exported["16bit"], sparsity=0.0, device="cpu") as graph:
        by_name = graph(**call, return_dict=False)[0]
        assert torch.equal(graph(*(call[n] for n in first), **rest).sample, by_name)
        with pytest.raises(TypeError, match="'guidence'"):
            graph(**call, guidence=torch.ones(1))
        clips = call["hidden_states"].repeat(2, 1, 1, 1, 1)
        text = "batch is 2 in hidden_states and 1 in encoder_hidden_states"
        with pytest.raises(InvalidInputError, match=text):
            graph(**{**call, "hidden_states": clips})
        with pytest.raises(InvalidInputError, match=r"sparsity=0\.5 is no .* set_sparsity"):
            graph.sparsity = 0.5
        with pytest.raises(UnsupportedError, match="'8bit' cannot be set"):
            graph.precision = "8bit"
        assert torch.equal(graph(**call).sample, by_name)
