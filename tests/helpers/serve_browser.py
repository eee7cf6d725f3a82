"""The service and its page on a port of this machine, and Debian's Chromium to look at it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.serving.noop import NoopWorker
from helpers.serve_running import Running
from helpers.serve_workers import wait_for
from rainfusion_trt.serve.worker import GenerationRequest, Media, OnStep, Ran
from rainfusion_trt.video import save_video

SECONDS, FPS = 2, 8
SPARSE, DENSE = 192, 64  # the shades of videos
_PLACE = "/usr/bin/chromium"
_QUIET = (  # nothing but the page, and nobody but this machine
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


class ShadeWorker(NoopWorker):
    """Makes dark videos where it is asked for dense attention, and bright ones elsewhere.

    Its steps wait until `go` is set.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(step_seconds=0.25)  # so that every step is told
        self.go = threading.Event()
        self._videos = {}
        for shade in (SPARSE, DENSE):
            frames = np.full((SECONDS * FPS, 64, 96, 3), shade, dtype=np.uint8)
            self._videos[shade] = save_video(frames, folder / f"{shade}.mp4", fps=FPS).read_bytes()

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        def stepped(done: int, steps: int) -> None:
            on_step(done, steps)
            assert self.go.wait(60)

        ran = super().generate(request, media, output, stepped)
        output.write_bytes(self._videos[DENSE if request.sparsity == 0 else SPARSE])
        return ran


def required() -> None:
    """Skip without the browser, and in continuous integration, which has it, fail."""
    missing = [name for name in ("gradio", "playwright") if not importlib.util.find_spec(name)]
    reason = f"no {', '.join(missing)} here: pip install '.[page,test]'" if missing else ""
    if not missing and shutil.which(_PLACE) is None:
        reason = f"no {_PLACE} here: apt-get install chromium"
    if reason and os.environ.get("CI"):
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The address of an application while it runs."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(30)


@contextlib.contextmanager
def working(running: Running) -> Iterator[None]:
    """Its worker runs what comes."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            if running.runner.run_next() is None:
                stop.wait(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(60)


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator[Any]:
    """A browser of a fresh profile, as a context of Playwright."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=_PLACE, headless=True, args=_QUIET
        )
        try:
            yield browser
        finally:
            browser.close()
