"""The service in this process: store, fake worker, application and a client of it."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient

from helpers.serve_workers import JournalWorker
from rainfusion_trt.serve.api import make_app
from rainfusion_trt.serve.content import open_content
from rainfusion_trt.serve.runner import JobRunner
from rainfusion_trt.serve.service import VideoService
from rainfusion_trt.serve.settings import ServeSettings
from rainfusion_trt.serve.store import Store


@dataclass
class Running:
    """A service with one worker, which runs jobs when it is told to."""

    service: Any
    runner: Any
    worker: Any
    client: Any
    journal: Path

    def drain(self) -> list[str]:
        """Run what waits; the ids."""
        done = []
        while (job := self.runner.run_next()) is not None:
            done.append(job)
        return done

    def in_background(self) -> threading.Thread:
        """Run one job in a thread."""
        thread = threading.Thread(target=self.runner.run_next)
        thread.start()
        return thread

    def post(self, **fields: Any) -> Any:
        """Submit; the answer's JSON."""
        answer = self.client.post("/v1/videos", json={"prompt": "a", **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def state(self, video: str) -> Any:
        """A job as the door tells it."""
        return self.client.get(f"/v1/videos/{video}").json()


def make_running(folder: Path, *, token: str | None = None, **given: Any) -> Running:
    step_seconds, page = given.pop("step_seconds", 0.0), given.pop("page", False)
    limit = {name: given.pop(name) for name in ("step_limit_s",) if name in given}
    worker = given.pop("worker", None)  # else one that keeps a journal
    given.setdefault("hosts", ("testserver",))  # as starlette's client calls it
    settings = ServeSettings.in_folder(folder / "serve", **given)
    store = Store(settings.database, lease_s=settings.lease_s, attempts=settings.attempts)
    content = open_content(settings.content)
    journal = folder / "journal"
    if worker is None:
        worker = JournalWorker(journal=str(journal), step_seconds=step_seconds)
    runner = JobRunner(store, content, worker, "worker-1", **limit)
    store.register("worker-1", "test", worker.describe())
    service = VideoService(store, content, "test", settings.limits)
    app = make_app(service, token=token, page=page, hosts=settings.hosts)
    client = TestClient(app, raise_server_exceptions=False)
    return Running(service, runner, worker, client, journal)
