"""Order and errors of CUDA graph capture and of the compiled-kernel cache.

CUDA and TensorRT are stood in for by recorders here, because what is tested is what is called when
something fails, which a working GPU does not show; tests/gpu/ runs the real ones.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rainfusion_trt.errors import KernelError
from rainfusion_trt.runtime import cuda_graph
from rainfusion_trt.runtime.cuda_graph import CapturedGraph
from rainfusion_trt.runtime.rtx_cache import CACHE_FILE, RuntimeCache

OK, BAD = "success", "no such luck"
STREAM = SimpleNamespace(cuda_stream=7)


class Cudart:
    """cuda.bindings.runtime: every call succeeds but those named."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread local")  # noqa: N815
    cudaError_t = SimpleNamespace(cudaSuccess=OK)  # noqa: N815

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.calls: list[str] = []

    def __getattr__(self, name: str):
        results = {"cudaStreamEndCapture": ("graph",), "cudaGraphInstantiate": ("executable",)}

        def call(*arguments):
            self.calls.append(name)
            return (BAD if name in self.failing else OK, *results.get(name, ()))

        return call

    def cudaGetErrorString(self, status):  # noqa: N802
        return OK, status.encode()


@pytest.fixture
def cudart(monkeypatch):
    def install(*failing: str) -> Cudart:
        fake = Cudart(*failing)
        monkeypatch.setattr(cuda_graph, "import_cudart", lambda: fake)
        return fake

    return install


def test_capture_replay_close(cudart):
    fake = cudart()
    graph = CapturedGraph(STREAM, lambda: fake.calls.append("enqueue"))
    assert fake.calls == [
        "cudaStreamBeginCapture",
        "enqueue",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaGraphDestroy",
    ]
    graph.replay()
    graph.replay()
    graph.close()
    graph.close()
    assert fake.calls[5:] == ["cudaGraphLaunch", "cudaGraphLaunch", "cudaGraphExecDestroy"]


@pytest.mark.parametrize(
    ("failing", "freed"), [((), ["cudaGraphDestroy"]), (("cudaStreamEndCapture",), [])]
)
def test_stream_leaves_capture_when_the_work_fails(cudart, failing, freed):
    fake = cudart(*failing)

    def enqueue():
        raise KernelError("engine refused")

    with pytest.raises(KernelError, match="engine refused"):
        CapturedGraph(STREAM, enqueue)
    assert fake.calls == ["cudaStreamBeginCapture", "cudaStreamEndCapture", *freed]


@pytest.mark.parametrize(
    ("failing", "words"),
    [
        ("cudaStreamBeginCapture", "begin capture: no such luck"),
        ("cudaStreamEndCapture", "end capture"),
        ("cudaGraphInstantiate", "instantiate the graph"),
    ],
)
def test_cuda_refuses(cudart, failing, words):
    cudart(failing)
    with pytest.raises(KernelError, match=f"{words}.*cuda_graph=False"):
        CapturedGraph(STREAM, lambda: None)


def test_graph_is_destroyed_when_it_cannot_be_instantiated(cudart):
    fake = cudart("cudaGraphInstantiate")
    with pytest.raises(KernelError):
        CapturedGraph(STREAM, lambda: None)
    assert fake.calls[-1] == "cudaGraphDestroy"


class RtxCache:
    """IRuntimeCache and IRuntimeConfig in one."""

    def __init__(self, accepts: bytes = b"") -> None:
        self.content = b""
        self.accepts = accepts
        self.used = None

    def create_runtime_cache(self):
        return self

    def set_runtime_cache(self, cache):
        self.used = cache

    def deserialize(self, content):
        if content == self.accepts:
            self.content = content
        return content == self.accepts

    def serialize(self):
        return self.content


def test_compiled_kernels_are_kept_and_found_again(tmp_path):
    first = RtxCache()
    cache = RuntimeCache(tmp_path, first)
    assert first.used is first
    first.content = b"kernels"
    cache.save()
    assert (tmp_path / CACHE_FILE).read_bytes() == b"kernels"
    second = RtxCache(accepts=b"kernels")
    RuntimeCache(tmp_path, second)
    assert second.content == b"kernels"
    assert [path.name for path in tmp_path.iterdir()] == [CACHE_FILE]


def test_cache_of_another_gpu_is_replaced(tmp_path):
    (tmp_path / CACHE_FILE).write_bytes(b"of another GPU")
    runtime = RtxCache()
    cache = RuntimeCache(tmp_path, runtime)
    assert runtime.content == b"" and runtime.used is runtime
    runtime.content = b"of this GPU"
    cache.save()
    assert (tmp_path / CACHE_FILE).read_bytes() == b"of this GPU"


def test_folder_that_cannot_be_written_is_no_error(tmp_path, caplog):
    caplog.set_level("INFO")
    runtime = RtxCache()
    cache = RuntimeCache(tmp_path / "gone", runtime)
    runtime.content = b"kernels"
    cache.save()
    assert "cannot keep compiled kernels" in caplog.text
