"""The worker of NVIDIA Dynamo, with stand-ins for what it takes of the package ai-dynamo."""

from __future__ import annotations

import asyncio
import base64
import io
import sys
import threading
import types

import pytest
from PIL import Image

from benchmarks.serving.noop import NoopWorker
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.serve.check import read_worker
from rainfusion_trt.serve.dynamo import Videos
from rainfusion_trt.serve.dynamo_messages import fields_of, media_of
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.settings import Limits


class Seen(NoopWorker):
    """Keeps what it was asked for, and does what the prompt says."""

    def __init__(self, **options):
        super().__init__(starts=((), ("image",), ("image", "last_image")), **options)
        self.asked, self.steps, self.broken = [], 0, None

    def generate(self, request, media, output, on_step):
        self.asked.append((request, media))
        if request.prompt == "break":
            self.broken = "the GPU is gone"
            raise RuntimeError("secret")
        if request.prompt == "bug":
            raise KeyError("secret")

        def counted(done, steps):
            self.steps = done
            on_step(done, steps)

        return super().generate(request, media, output, counted)

    def fault(self):
        return self.broken


class Context:
    """Of a client that leaves after some questions whether it is there."""

    def __init__(self, stays=10**9):
        self._stays = stays

    def id(self):
        return "request-1"

    def is_stopped(self):
        self._stays -= 1
        return self._stays < 0

    def is_killed(self):
        return False


@pytest.fixture(autouse=True)
def dynamo(monkeypatch):
    module = types.ModuleType("dynamo.llm.exceptions")
    for name in ("Cancelled", "EngineShutdown", "InvalidArgument", "Unknown"):
        setattr(module, name, type(name, (Exception,), {}))
    for name in ("dynamo", "dynamo.llm"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def worker():
    return Seen()


@pytest.fixture
def videos(worker):
    made = Videos(lambda: worker)
    yield made
    asyncio.run(made.cleanup())


def send(videos, context=None, **body):
    async def only():
        found = [item async for item in videos.generate(body, context or Context())]
        (item,) = found
        return item

    return asyncio.run(only())


def test_a_video_as_dynamo_asks_for_it(videos, worker):
    extension = {"num_inference_steps": 3, "seed": 5, "fps": 8, "guidance_scale": None}
    passed = {"media_passthrough": {"sparsity": 0.25, "method": "piecewise"}}
    body = {"model": "noop", "prompt": "a fox", "size": "16x16", "user": "u", "stream": False}
    found = send(videos, **body, nvext=extension, extra_args=passed, response_format="b64_json")
    (request, media), *others = worker.asked
    assert not others and media == {}
    assert (request.prompt, request.steps, request.seed) == ("a fox", 3, 5)
    assert (request.sparsity, request.method, request.width) == (0.25, "piecewise", 16)
    (data,) = found.pop("data")
    assert base64.b64decode(data["b64_json"])[4:8] == b"ftyp" and data["output_format"] == "mp4"
    assert (found["id"], found["model"], found["status"]) == ("request-1", "noop", "completed")
    url = send(videos, model="noop", prompt="a fox")["data"][0]["url"]
    assert base64.b64decode(url.removeprefix("data:video/mp4;base64,"))[4:8] == b"ftyp"


def test_another_name_than_the_models(worker):
    videos = Videos(lambda: worker, served_model_name="fast")
    assert send(videos, model="fast", prompt="a fox")["model"] == "fast"
    asyncio.run(videos.cleanup())


def test_an_image(videos, worker):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(file, "JPEG")
    text = base64.b64encode(file.getvalue()).decode()
    send(videos, prompt="a fox", input_reference=f"data:image/jpeg;base64,{text}")
    send(videos, prompt="a fox", input_reference=text, last_image=text)
    names = [("image",), ("image", "last_image")]
    assert [tuple(media) for _, media in worker.asked] == names
    assert all(data.startswith(b"\x89PNG") for _, media in worker.asked for data in media.values())


@pytest.mark.parametrize(
    "body, said",
    [
        ({"stream": True}, "stream is true"),
        ({"output_format": "mjpeg"}, "output_format is 'mjpeg'"),
        ({"response_format": "file"}, "response_format is 'file'"),
        ({"nvext": {"boundary_ratio": 0.9}}, "boundary_ratio is no field"),
        ({"nvext": 3}, "nvext is no object"),
        ({"seconds": 1, "extra_args": {"media_passthrough": {"seconds": 2}}}, "given twice"),
        ({"wrong": 1}, "wrong is no field"),
        ({"size": "17x16"}, "multiples of 16"),
        ({"input_reference": "https://example.org/a.png"}, "addresses are not fetched"),
        ({"last_image": "https://example.org/a.png"}, "last_image is no base64"),
        ({"model": "other"}, "is not served here"),
    ],
)
def test_refused_before_the_worker(videos, worker, dynamo, body, said):
    with pytest.raises(dynamo.InvalidArgument, match=said):
        send(videos, **{"prompt": "a fox", **body})
    assert not worker.asked


def test_a_large_image_is_not_decoded():
    with pytest.raises(ServiceError, match="input_reference: more than 8 bytes"):
        media_of({"input_reference": "A" * 40}, Limits(upload_bytes=8))


def test_fields_that_dynamo_adds_are_left_out():
    body = {"prompt": "a", "_HEALTH_CHECK": True, "nvext": {"annotations": ["x"]}}
    assert fields_of(body) == {"prompt": "a"}


def test_a_client_that_leaves_ends_its_video(videos, worker, dynamo):
    with pytest.raises(dynamo.Cancelled, match="the client left after 2 of 9 steps"):
        send(videos, Context(stays=2), prompt="a fox", steps=9)
    assert worker.steps == 2
    with pytest.raises(dynamo.Cancelled):  # while it waited
        send(videos, Context(stays=0), prompt="a fox")
    assert len(worker.asked) == 1
    assert send(videos, prompt="a fox")["status"] == "completed"


def test_a_request_that_is_dropped_ends_its_video(dynamo):
    slow = Seen(step_seconds=0.05)
    videos = Videos(lambda: slow)

    async def dropped():
        stream = videos.generate({"prompt": "a fox", "steps": 100}, Context())
        task = asyncio.ensure_future(stream.__anext__())
        while not slow.steps:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(dropped())
    assert send(videos, prompt="a fox")["status"] == "completed"  # waits for the thread
    assert len(slow.asked) == 2 and slow.steps == 2
    asyncio.run(videos.cleanup())


def test_faults_tell_nothing_of_the_server(videos, dynamo):
    with pytest.raises(dynamo.Unknown, match="the worker's log says why"):
        send(videos, prompt="bug")
    with pytest.raises(dynamo.EngineShutdown, match="the GPU is gone"):
        send(videos, prompt="break")


def test_a_worker_that_hangs_is_given_up(dynamo, monkeypatch):
    """Its own request and those that wait in it end; so does the process, which it would keep."""
    go, ended = threading.Event(), []
    monkeypatch.setattr("os._exit", ended.append)

    class Hanging(Seen):
        def generate(self, request, media, output, on_step):
            on_step(1, 2)
            assert go.wait(60)
            return super().generate(request, media, output, on_step)

    videos = Videos(lambda: Hanging(), step_limit_s=0.2)

    async def both():
        asked = (videos.generate({"prompt": "a fox"}, Context()) for _ in range(2))
        return await asyncio.gather(*(one.__anext__() for one in asked), return_exceptions=True)

    for error in asyncio.run(both()):
        assert isinstance(error, dynamo.EngineShutdown)
        assert str(error) == "the worker hangs: it made no step for 0.2 s (step_limit_s)"
    asyncio.run(videos.cleanup())
    assert ended == [1]
    go.set()


@pytest.mark.parametrize(
    "text, said",
    [
        (None, "is no file"),
        ("- 1", "holds no settings"),
        ("replicas: 2", "replicas: 2 in"),
        ("gpus: two", "worker.yaml: gpus='two' must be an integer: see"),
        ("options: {chekpoint: x}", "have 'chekpoint', which PipelineWorker does not"),
        ("options: {demo: true, preset: best}", "preset='best'"),
    ],
)
def test_settings_that_are_refused(tmp_path, text, said):
    file = tmp_path / "worker.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidInputError, match=said):
        read_worker(file)
