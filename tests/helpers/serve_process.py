"""The service as users start it, in a process of its own with Ray, and clients of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from helpers.serve_workers import wait_for
from rainfusion_trt.processes.run import guarded

ROOT = Path(__file__).resolve().parents[2]
START_S = 400.0  # Ray starts ten processes, and the machine may be busy


class Server:
    """A running service."""

    def __init__(self, port: int, guard: int) -> None:
        self.port = port
        self._guard = guard

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            method=method,
            data=data,
            headers={"Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, _content(answer)
        except urllib.error.HTTPError as error:
            return error.code, _content(error)

    def post(self, **fields: Any) -> str:
        """Submit a job; its id."""
        status, made = self.call("POST", "/v1/videos", {"prompt": "a", **fields})
        assert status == 200, made
        return made["id"]

    def state(self, video: str) -> Any:
        """A job."""
        status, found = self.call("GET", f"/v1/videos/{video}")
        assert status == 200, found
        return found

    def finished(self, video: str, *, seconds: float = 120.0) -> Any:
        """A job once it is completed or failed."""

        def state() -> Any:
            found = self.state(video)
            return found if found["status"] in ("completed", "failed") else None

        return wait_for(state, seconds=seconds)

    def is_up(self) -> bool:
        """Whether a worker is ready."""
        try:
            return self.call("GET", "/health")[0] == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def kill(self) -> None:
        """SIGKILL to the process that the user started."""
        children = Path(f"/proc/{self._guard}/task/{self._guard}/children").read_text().split()
        for child in children:
            command = Path(f"/proc/{child}/cmdline").read_bytes()
            if b"rainfusion_trt.cli" in command:
                os.kill(int(child), signal.SIGKILL)
                return
        raise AssertionError("the server is not there")


@contextlib.contextmanager
def serving(settings: dict[str, Any], folder: Path) -> Iterator[Server]:
    """The service with its settings, until the context ends."""
    file = folder / "settings.yaml"
    file.write_text(yaml.safe_dump(settings))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "rainfusion_trt.cli", "serve"]
    command += ["--settings", str(file), "--port", str(port)]
    paths = (str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", ""))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    environment.pop("RAINFUSION_TRT_TOKEN", None)
    log = folder / "server.log"
    with log.open("a") as output:
        options = {"stdout": output, "stderr": output, "env": environment, "cwd": folder}
        with guarded(command, **options) as process:
            server = Server(port, process.pid)

            def up() -> bool:
                assert process.poll() is None, log.read_text()[-4000:]
                return server.is_up()

            wait_for(up, seconds=START_S, every=0.3)
            yield server


def _content(answer: Any) -> Any:
    data = answer.read()
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    return json.loads(data) if is_json else data
