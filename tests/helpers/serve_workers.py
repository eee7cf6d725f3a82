"""Workers for tests of the service: one that keeps a journal, and a tiny real model."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.serving.noop import NoopWorker
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.serve.pipeline_worker import PipelineWorker
from rainfusion_trt.serve.worker import GenerationRequest, Media, ModelDescription, OnStep, Ran

TINY = VideoSize(9, 64, 96)
STARTS = ((), ("image",), ("image", "last_image"))


class JournalWorker(NoopWorker):
    """Does what the prompt says, and notes what it began and made, a line each, in a file."""

    def __init__(self, *, journal: str, **options: Any) -> None:
        super().__init__(starts=STARTS, **options)
        self._journal = Path(journal)
        self._broken: str | None = None
        self.go = threading.Event()  # what hangs goes on

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        self._note("began", request.prompt)
        if request.prompt == "refuse":
            raise InvalidInputError("prompt='refuse' is refused:\nsay another")
        if request.prompt == "bug":
            raise KeyError("secret of the server")
        if request.prompt == "memory":
            raise MemoryError
        if request.prompt == "full":
            raise OSError(28, "No space left on device", "/secret/path")
        if request.prompt == "break":
            self._broken = "broken"
            raise RuntimeError("the GPU is gone")
        if request.prompt == "hang" and not self._began_before(request.prompt):
            self.go.wait()
        for name, data in media.items():
            self._note(name, f"{len(data)}")
        ran = super().generate(request, media, output, on_step)
        self._note("made", request.prompt)
        return ran

    def fault(self) -> str | None:
        return self._broken

    def _began_before(self, prompt: str) -> bool:
        return journal_lines(self._journal, "began").count(prompt) > 1

    def _note(self, what: str, prompt: str) -> None:
        line = f"{what} {prompt} {os.getpid()}\n"
        with self._journal.open("a") as file:  # one write: lines of processes do not mix
            file.write(line)


class JournalCogVideoX(JournalWorker):
    """The tiny seeded CogVideoX for prompts that begin with "real"; others only count steps.

    Those of prompts that begin with "slow" take 0.2 s.
    """

    def __init__(self, *, journal: str, gpus: int = 0) -> None:
        super().__init__(journal=journal, gpus=gpus)
        self._model = tiny_cogvideox(gpus=gpus)

    def describe(self) -> ModelDescription:
        return self._model.describe()

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        if not request.prompt.startswith("real"):
            self._step_seconds = 0.2 if request.prompt.startswith("slow") else 0.0
            return super().generate(request, media, output, on_step)
        self._note("began", request.prompt)
        ran = self._model.generate(request, media, output, on_step)
        self._note("made", request.prompt)
        return ran


def journal_lines(journal: Path, what: str) -> list[str]:
    """The prompts that were begun, or made."""
    if not journal.exists():
        return []
    lines = [line.split() for line in journal.read_text().splitlines()]
    return [prompt for kind, *prompts, _ in lines if kind == what for prompt in prompts]


def journal_process(journal: Path, prompt: str) -> int:
    """The process that began a prompt last."""
    lines = [line.split() for line in journal.read_text().splitlines()]
    return int([last for _, *prompts, last in lines if prompts == [prompt]][-1])


def wait_for(found: Any, *, seconds: float = 30.0, every: float = 0.05) -> Any:
    """What a function gives once that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if result := found():
            return result
        time.sleep(every)
    raise AssertionError(f"nothing after {seconds} s")


def tiny_cogvideox(*, gpus: int = 0, **options: Any) -> PipelineWorker:
    """A worker with the tiny seeded CogVideoX."""
    from helpers.cogvideox_pipeline import tiny_pipeline

    pipe = tiny_pipeline(get_model("cogvideox-5b"), size=TINY)
    defaults = {"width": TINY.width, "height": TINY.height, "frames": TINY.frames, "steps": 2}
    defaults |= {"guidance": 1.0}
    return PipelineWorker(pipe=pipe, defaults=defaults, gpus=gpus, **options)


def described(**changes: Any) -> ModelDescription:
    """A model of a usual kind."""
    values: dict[str, Any] = {"model": "tiny", "backend": "torch", "width": 96, "height": 64}
    values |= {"frames": 9, "fps": 8, "steps": 2, "guidance": 6.0, "methods": ("rainfusion",)}
    return ModelDescription(**{**values, **changes})
