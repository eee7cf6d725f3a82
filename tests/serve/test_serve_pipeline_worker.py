"""The worker on real pipelines: what ran is told, and a stop leaves it usable."""

from __future__ import annotations

import contextlib
import io

import av
import diffusers
import pytest
import torch
from PIL import Image

from helpers.serve_workers import TINY, tiny_cogvideox
from rainfusion_trt.demo.trained import TRAINED_PROMPT, TRAINED_SIZE
from rainfusion_trt.errors import (
    DenseAttentionError,
    InvalidInputError,
    KernelError,
    RainFusionError,
)
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import METHODS, AttentionSettings
from rainfusion_trt.runtime.clip_ranges import ClipRange
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.request import VideoRequest, plan
from rainfusion_trt.serve.settings import Limits
from rainfusion_trt.serve.worker import GenerationRequest, make_worker
from rainfusion_trt.sigma_schedule import SigmaSchedule
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.video import load_video


class Stop(Exception):  # noqa: N818  (no error)
    """Raised between steps."""


@pytest.fixture(scope="module")
def worker():
    made = tiny_cogvideox()
    yield made
    made.close()


def request_of(**changes) -> GenerationRequest:
    size = {"width": TINY.width, "height": TINY.height, "frames": TINY.frames}
    values = {"prompt": "a", "fps": 8, "seed": 3, "steps": 2, "guidance": 1.0, **size}
    values["method"] = "rainfusion"  # windows and blocks of a clip this small all meet
    return GenerationRequest(**{**values, **changes})


def test_what_it_says_of_itself(worker):
    said = worker.describe()
    assert (said.model, said.backend, said.fixed_size) == ("cogvideox-5b", "torch", False)
    assert (said.width, said.height, said.frames) == (TINY.width, TINY.height, TINY.frames)
    assert said.methods[0] == AttentionSettings.method
    assert sorted(said.methods) == sorted(METHODS)
    assert said.starts == ((),) and said.takes_negative_prompt


def test_the_ranges_of_its_engines_are_told(worker, monkeypatch):
    """The size that a graph was exported for may be none of its engine's."""
    small = ClipRange((9, 13), (64, 80), (96, 96))
    monkeypatch.setattr(type(worker), "_ranges", lambda _: (small,))
    monkeypatch.setattr(worker, "_defaults", {})
    said = worker.describe()
    (told,) = said.ranges
    assert (told.frames, told.height, told.width) == (small.frames, small.height, small.width)
    assert (said.frames, said.height, said.width) == (13, 80, 96)
    assert (said.frames_first, said.frames_step) == (1, 4)


def test_a_video_and_what_ran(worker, tmp_path, one_thread):
    told = []
    output = tmp_path / "a.mp4"
    ran = worker.generate(request_of(guidance=3.0), {}, output, lambda *step: told.append(step))
    assert told == [(1, 2), (2, 2)]
    with av.open(str(output)) as video:
        assert sum(1 for _ in video.decode(video=0)) == TINY.frames
        assert float(video.streams.video[0].average_rate) == 8.0
    assert (ran.width, ran.height, ran.frames) == (TINY.width, TINY.height, TINY.frames)
    assert ran.method == "rainfusion" and ran.guidance == 3.0 and ran.seed == 3
    first, second = ran.steps
    assert (first.sparsity, first.density, first.sparse_attentions) == (0.0, 1.0, 0)
    assert second.sparsity == 0.5 and second.density is not None
    assert second.sparse_attentions > 0 and second.dense_attentions == 0
    assert first.milliseconds >= first.transformer_milliseconds > 0.0


def test_a_stop_between_steps_leaves_it_usable(worker, tmp_path, one_thread):
    def stop(done, steps):
        raise Stop

    output = tmp_path / "a.mp4"
    with pytest.raises(Stop):
        worker.generate(request_of(), {}, output, stop)
    assert not output.exists()
    worker.generate(request_of(), {}, output, lambda *_: None)
    assert output.exists() and worker.fault() is None


def test_presets_and_methods_of_a_request(worker, tmp_path, one_thread):
    def run(name, **asked):
        output = tmp_path / f"{name}.mp4"
        return worker.generate(request_of(**asked), {}, output, lambda *_: None)

    fast = run("fast", preset="fast", method=None, frames=37)  # more than one window
    assert fast.method == "piecewise" and max(step.sparsity for step in fast.steps) == (
        pytest.approx(0.9)
    )
    dense = run("dense", sparsity=0.0)
    assert dense.method is None and all(step.density == 1.0 for step in dense.steps)
    plain = run("plain", method="rainfusion2", sparsity=0.25, frames=65)
    assert plain.method == "rainfusion2" and plain.steps[1].sparsity == 0.25
    assert run("usual", method=None, frames=37).method == AttentionSettings.method
    with pytest.raises(DenseAttentionError, match="one window of .* larger clip, another method"):
        run("one window", method=None)
    with pytest.raises(DenseAttentionError, match="every two blocks of method 'rainfusion2'"):
        run("one block", method="rainfusion2", sparsity=0.25)


@pytest.mark.parametrize("given", [{"preset": "fast"}, {"sparsity": 0.5}, {}])
def test_a_sparse_job_that_waited_for_a_dense_server(worker, tmp_path, monkeypatch, given):
    """As after a restart with an ONNX file in the engine's place; a dense job is made."""
    monkeypatch.setattr(worker._pipeline.denoiser, "sparse", False)
    name = next(iter(given), "method")
    with pytest.raises(InvalidInputError, match=f"{name}=.* dense on this server by now"):
        worker.generate(request_of(**given), None, tmp_path / "a.mp4", lambda *_: None)
    assert not worker._attention(request_of(method=None, sparsity=0.0))[0](1, 2)


def test_the_precision_of_every_step(worker, tmp_path, one_thread):
    asked = request_of(steps=2, method="rainfusion2", sparsity=0.25, frames=65)
    ran = worker.generate(asked, {}, tmp_path / "a.mp4", lambda *_: None)
    assert [step.precision for step in ran.steps] == ["16bit", "16bit"]
    with contextlib.closing(tiny_cogvideox(attention_precision="8bit", first_16bit=0.5)) as other:
        ran = other.generate(asked, {}, tmp_path / "b.mp4", lambda *_: None)
        methods = other.describe().methods
    assert [step.precision for step in ran.steps] == ["16bit", "8bit"]
    # Requests of the others are refused at once, and not by the worker.
    assert set(methods) == {"piecewise", "rainfusion2", "rainfusion_two_way"}


def test_a_cache_of_a_request(worker, tmp_path, one_thread):
    assert (worker.describe().caches, worker.describe().cache) == (("easy",), None)

    def run(name, **asked):
        output = tmp_path / f"{name}.mp4"
        return worker.generate(request_of(steps=4, **asked), {}, output, lambda *_: None)

    cached = run("cached", cache="easy", cache_threshold=1e9)
    assert (cached.cache, cached.cache_threshold) == ("easy", 1e9)
    whole = cached.steps[0].dense_attentions
    found = [(s.sparse_attentions + s.dense_attentions, s.skipped_attentions) for s in cached.steps]
    assert found == [(whole, 0), (whole, 0), (0, whole), (whole, 0)]
    assert cached.steps[2].density == 0.0
    plain = run("plain")
    assert plain.cache is None and all(step.skipped_attentions == 0 for step in plain.steps)


def test_a_cache_for_requests_that_name_none(tmp_path):
    scheduler = "CogVideoXDDIMScheduler"
    ratios = MagnitudeRatios("cogvideox-5b", scheduler, (2.0, 1.0), None, (None, 1.0))
    file = tmp_path / "ratios.json"
    file.write_text(ratios.text())
    options = {"cache": "easy", "cache_threshold": 0.2, "cache_ratios": str(file)}
    worker = tiny_cogvideox(**options)
    said = worker.describe()
    worker.close()
    assert (said.caches, said.cache_steps, said.cache) == (("easy", "mag"), 2, "easy")
    asked = VideoRequest(prompt="a", cache="mag", steps=3)
    with pytest.raises(ServiceError, match="calibrated for 2 steps, and this request has 3"):
        plan(asked, said, Limits())
    usual = plan(VideoRequest(prompt="a", cache_threshold=0.1), said, Limits())
    assert (usual.cache, usual.cache_threshold) == (None, 0.1)


def test_attention_of_the_settings(tmp_path, one_thread):
    """What requests get that do not say otherwise, and what all of them get."""
    usual = {"method": "rainfusion2", "sparsity": 0.25, "dense_fraction": 0.0, "dense_layers": [0]}
    worker = tiny_cogvideox(**usual, last_sink_frames=1, exact_frames=[[1, 2]])

    def found(**asked):
        schedule, method, dense = worker._attention(request_of(**{"method": None, **asked}))
        assert dense == (0,)
        if isinstance(schedule, SigmaSchedule):
            return schedule.peak, method
        return schedule(0, 4), schedule(3, 4), method

    assert found() == (0.25, 0.25, "rainfusion2")
    assert found(sparsity=0.5) == (0.5, 0.5, "rainfusion2")
    assert found(method="piecewise") == (0.25, 0.25, "piecewise")
    assert found(preset="fast") == (0.9, "piecewise")  # its own goes before what is usual
    assert found(preset="fast", method="rainfusion_two_way") == (0.9, "rainfusion_two_way")
    said = worker.describe()
    assert said.methods[0] == "rainfusion2" and "rainfusion" not in said.methods  # exact frames
    # A larger clip: this one has blocks beside the sinks and the exact frame that do not meet.
    asked = request_of(method=None, frames=97)
    ran = worker.generate(asked, {}, tmp_path / "a.mp4", lambda *_: None)
    assert ran.method == "rainfusion2" and [step.sparsity for step in ran.steps] == [0.25, 0.25]
    assert worker._pipeline.denoiser.dense_layers == (0,)
    worker._choose("rainfusion_two_way")
    kept = worker._pipeline.artifacts.settings
    assert (kept.last_sink_frames, kept.exact_frames) == (1, ((1, 2),))
    worker.close()


def test_a_preset_of_the_settings_beside_a_method():
    worker = tiny_cogvideox(preset="fast", method="rainfusion2", sparsity=0.5)
    schedule, method, _ = worker._attention(request_of(method=None))
    assert (schedule.peak, method) == (0.5, "rainfusion2")
    assert worker._attention(request_of(method=None, preset="quality"))[1] == "piecewise"
    worker.close()


@pytest.mark.parametrize("given", [{"preset": "fast"}, {"sparsity": 0.5}, {"dense_layers": [0]}])
def test_sparse_attention_of_a_dense_backend_is_refused(monkeypatch, given):
    monkeypatch.setattr("rainfusion_trt.runtime.torch_denoiser.TorchDenoiser.sparse", False)
    with pytest.raises(InvalidInputError, match=f"{next(iter(given))}=.* attention is dense on"):
        tiny_cogvideox(**given)
    tiny_cogvideox(sparsity=0.0).close()


def test_a_preset_of_a_method_that_no_request_could_have(monkeypatch):
    monkeypatch.setattr(PipelineWorker, "_methods", lambda _: ("rainfusion2",))
    with pytest.raises(InvalidInputError, match="preset fast is of method 'piecewise', and this"):
        tiny_cogvideox(preset="fast")
    tiny_cogvideox(preset="fast", method="rainfusion2").close()


@pytest.mark.slow
def test_the_demo_model_from_a_request_to_a_file(tmp_path):
    """Two steps of the model that ships, as `rainfusion-trt serve --demo` makes it."""
    worker = PipelineWorker(demo=True)
    said = worker.describe()
    assert (said.width, said.height, said.frames, said.steps) == (320, 256, 49, 30)
    whole = {"width": said.width, "height": said.height, "frames": said.frames}
    asked = request_of(prompt=TRAINED_PROMPT, method=None, sparsity=0.5, **whole)
    ran = worker.generate(asked, {}, tmp_path / "a.mp4", lambda *_: None)
    assert (ran.frames, ran.height, ran.width) == (
        *(TRAINED_SIZE.frames, TRAINED_SIZE.height),
        TRAINED_SIZE.width,
    )
    assert ran.method == AttentionSettings.method
    assert ran.steps[1].sparsity == 0.5 and ran.steps[1].density < 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give model and checkpoint"),
        ({"model": "sora", "checkpoint": "x"}, "'sora' is unknown"),
        ({"model": "cogvideox-5b", "checkpoint": "/nowhere"}, "cannot be loaded"),
        ({"model": "minimax-h3", "checkpoint": "x"}, "Pipeline does not drive minimax-h3: diff"),
        (
            {"model": "wan2.1-1.3b", "checkpoint": "x", "transformer_2": __file__},
            "wan2.1-1.3b has one transformer: leave out that of transformer_2",
        ),
        ({"demo": True, "transformer": __file__}, "pipe= has a transformer"),
        ({"demo": True, "gpus": 2}, "gpus=2"),
        ({"demo": True, "preset": "best"}, "preset='best'"),
        ({"demo": True, "surprise": 1}, "'surprise' is no option of a worker"),
    ],
)
def test_bad_options_are_one_line(options, words):
    with pytest.raises(RainFusionError, match=words):
        PipelineWorker(**options)


def test_bad_factories_are_one_line():
    for factory in ("nothing", "rainfusion_trt:nothing", "no.module:x", ":x"):
        with pytest.raises(InvalidInputError, match="package.module:callable"):
            make_worker(factory, {}, gpus=0)


def png(red: int) -> bytes:
    picture = io.BytesIO()
    Image.new("RGB", (192, 128), (red, 10, 10)).save(picture, "PNG")
    return picture.getvalue()


WAN = {"width": 192, "height": 128, "frames": 9, "steps": 1, "guidance": 1.0}


@pytest.fixture(scope="module")
def text_and_image(tmp_path_factory):
    """Of a checkpoint of text to video whose model has a pipeline of images too."""
    from helpers.wan_pipeline import tiny_pipeline

    model = get_model("wan2.2-ti2v-5b")
    transformer = model.create(model.config("tiny"), dtype=torch.bfloat16)
    folder = tmp_path_factory.mktemp("checkpoint")
    pipe = tiny_pipeline(transformer, expand_timesteps=True)
    pipe.to(torch.bfloat16).save_pretrained(folder)
    made = PipelineWorker(model=model.name, checkpoint=str(folder), defaults=WAN)
    yield made
    made.close()


def test_what_it_starts_from_is_the_registrys(text_and_image, tmp_path, monkeypatch):
    """And not what the class that the checkpoint names takes."""
    said = text_and_image.describe()
    assert type(text_and_image._pipeline.pipe).__name__ == "WanPipeline"
    assert said.starts == ((), ("image",))  # a last one it would leave out
    monkeypatch.setattr("rainfusion_trt.runtime.one_call.check_packages", lambda _: None)
    monkeypatch.setattr(
        "diffusers.pipelines.wan.pipeline_wan_i2v.prompt_clean", lambda text: text
    )  # which needs ftfy
    output = tmp_path / "a.mp4"
    asked = GenerationRequest(prompt="a", fps=8, seed=3, sparsity=0.0, **WAN)
    text_and_image.generate(asked, {"image": png(200)}, output, lambda *_: None)
    assert output.exists()


def test_weights_of_a_file_are_served(tmp_path):
    from helpers.wan_authors import MODEL, authors, write
    from helpers.wan_pipeline import tiny_pipeline

    folder, beside = tmp_path / "checkpoint", tmp_path / "file"
    beside.mkdir()
    one, other = (
        MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.bfloat16, seed=seed)
        for seed in (1, 2)
    )
    tiny_pipeline(one).to(torch.bfloat16).save_pretrained(folder)
    file = write(beside, authors(other.state_dict()))
    options = {"model": MODEL.name, "checkpoint": str(folder)}
    for given, wanted in (({}, one), ({"transformer": str(file)}, other)):
        made = PipelineWorker(**options, **given)
        served = made._pipeline.artifacts.originals["transformer"].state_dict()
        made.close()
        expected = wanted.state_dict()
        assert served.keys() == expected.keys()
        assert all(torch.equal(served[name], expected[name]) for name in expected)


def test_a_model_of_images_says_that_it_needs_one():
    from helpers.wan_pipeline import tiny_pipeline

    def worker_of(name):
        model = get_model(name)
        transformer = model.create(model.config("tiny"), dtype=torch.float32)
        kind = getattr(diffusers, model.pipeline_class)
        return PipelineWorker(pipe=tiny_pipeline(transformer, kind), defaults=WAN)

    said = worker_of("wan2.1-i2v-14b").describe()
    assert said.starts == (("image",),)  # though its pipeline takes last_image
    with pytest.raises(InvalidInputError, match="starts from something else than"):
        worker_of("wan2.2-animate-14b")


def test_a_first_and_a_last_picture(tmp_path, monkeypatch, one_thread):
    """Both reach the model: another last one changes the end of the video."""
    from helpers.wan_pipeline import tiny_pipeline

    model = get_model("wan2.1-flf2v-14b")
    transformer = model.create(model.config("tiny"), dtype=torch.float32)
    worker = PipelineWorker(
        pipe=tiny_pipeline(transformer, getattr(diffusers, model.pipeline_class)), defaults=WAN
    )
    assert worker.describe().starts == (("image", "last_image"),)
    monkeypatch.setattr("rainfusion_trt.runtime.one_call.check_packages", lambda _: None)
    monkeypatch.setattr(
        "diffusers.pipelines.wan.pipeline_wan_i2v.prompt_clean", lambda text: text
    )  # which needs ftfy
    asked = GenerationRequest(prompt="a", fps=8, seed=3, sparsity=0.0, **WAN)
    ends = []
    for number, last in enumerate((250, 10, 250)):
        output = tmp_path / f"{number}.mp4"
        pictures = {"image": png(200), "last_image": png(last)}
        worker.generate(asked, pictures, output, lambda *_: None)
        ends.append(load_video(output)[-1])
    assert (ends[0] == ends[2]).all() and (ends[0] != ends[1]).any()


@pytest.fixture
def on_gpu(monkeypatch):
    """A worker that believes that it has a GPU, which says what it is told to say."""
    made, said = tiny_cogvideox(), []

    def synchronize(device):
        assert device.type == "cuda"
        if said:
            raise said[0]

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    zeros = torch.zeros

    def zeros_on_gpu(*shape, device=None, **others):
        if getattr(device, "type", None) == "cuda":
            return torch.ones(1)
        return zeros(*shape, device=device, **others)

    monkeypatch.setattr(torch, "zeros", zeros_on_gpu)
    monkeypatch.setattr(type(made._pipeline), "device", torch.device("cuda"))
    return made, said


def fail_with(error, worker, monkeypatch, output):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(worker._pipeline), "__call__", fail)
    with pytest.raises(type(error)):
        worker.generate(request_of(), {}, output, lambda *_: None)
    assert torch.is_grad_enabled()  # the call left nothing behind


def test_a_broken_gpu_makes_it_unhealthy(on_gpu, tmp_path, monkeypatch):
    """An error that stays in the context is met by whoever asks the device next."""
    worker, said = on_gpu
    said.append(type("AcceleratorError", (RuntimeError,), {})("CUDA error: an illegal address"))
    fail_with(KernelError("the engine did not run"), worker, monkeypatch, tmp_path / "a.mp4")
    assert worker.fault() == (
        "the GPU has failed (AcceleratorError: CUDA error: an illegal address)"
    )


@pytest.mark.parametrize(
    "error",
    [
        KernelError("shape (2, 99) of input hidden_states refused"),
        InvalidInputError("no optimisation profile serves it"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: invalid configuration argument"),
    ],
)
def test_an_error_of_one_request_leaves_it_healthy(on_gpu, tmp_path, monkeypatch, error):
    worker, said = on_gpu
    if isinstance(error, torch.OutOfMemoryError):
        said.append(error)  # others hold the memory that the question would need
    fail_with(error, worker, monkeypatch, tmp_path / "a.mp4")
    assert worker.fault() is None


def test_the_cpu_does_not_break(worker, tmp_path, monkeypatch):
    fail_with(KernelError("a"), worker, monkeypatch, tmp_path / "a.mp4")
    assert worker.fault() is None


def test_a_pipeline_that_cannot_be_made_again_is_a_fault(tmp_path, monkeypatch):
    """Of another method; else it would refuse all requests that come, closed as it is."""
    worker = tiny_cogvideox()

    def broken(**_):
        raise RuntimeError("CUDA error: an illegal memory access")

    monkeypatch.setattr("rainfusion_trt.serve.pipeline_worker.Pipeline", broken)
    asked = request_of(method="rainfusion2", sparsity=0.5)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        worker.generate(asked, {}, tmp_path / "a.mp4", lambda *_: None)
    assert (
        worker.fault() == "its pipeline cannot be made again: CUDA error: an illegal memory access"
    )
