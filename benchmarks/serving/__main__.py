"""Jobs a minute of the service itself, and the latency of watching them.

python -m benchmarks.serving [--jobs 400] [--workers 2] [--watchers 50]

The service is started as users start it, with Ray and SQLite, and workers that compute nothing.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from benchmarks.record import environment, write_result
from rainfusion_trt.console import run_command
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.processes.run import guarded

_CLIENTS = 16
_START_S = 300.0
_PACKAGES = ("ray", "fastapi", "SQLAlchemy", "uvicorn")


class Service:
    """Calls of a running service."""

    def __init__(self, port: int) -> None:
        self._base = f"http://127.0.0.1:{port}"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON of an answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(
            self._base + path, method=method, data=data, headers=headers
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.loads(answer.read())

    def wait(self, process: Any) -> None:
        """Until it answers."""
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if process.poll() is not None:
                raise RainFusionError("the service has ended: run rainfusion-trt serve by itself")
            try:
                self.call("GET", "/health")
                return
            except OSError:
                time.sleep(0.5)
        raise RainFusionError(f"the service does not answer after {_START_S:g} s")


def throughput(service: Service, jobs: int) -> dict[str, Any]:
    """All jobs from the first request to the last that is finished."""
    body = {"prompt": "a", "steps": 2}
    start = time.perf_counter()
    with ThreadPoolExecutor(_CLIENTS) as clients:
        made = list(clients.map(lambda _: service.call("POST", "/v1/videos", body), range(jobs)))
        accepted = time.perf_counter() - start
        ids = {video["id"] for video in made}
        while ids:  # the queue is watched as a list, not job by job
            page = service.call("GET", "/v1/videos?limit=100&order=desc")
            if all(video["status"] == "completed" for video in page["data"]):
                ids -= {video["id"] for video in page["data"]}
                ids = {i for i in ids if _status(service, i) != "completed"}
            time.sleep(0.02)
    seconds = time.perf_counter() - start
    return {
        "measured": "jobs",
        "jobs": jobs,
        "clients": _CLIENTS,
        "seconds": round(seconds, 3),
        "jobs_per_minute": round(60 * jobs / seconds, 1),
        "requests_accepted_per_second": round(jobs / accepted, 1),
    }


def watching(service: Service, watchers: int, seconds: float) -> dict[str, Any]:
    """GET of one job by many watchers at once, each asking again as soon as it is answered."""
    video = service.call("GET", "/v1/videos?limit=1")["data"][0]["id"]
    end = time.perf_counter() + seconds
    times: list[float] = []
    lock = threading.Lock()

    def watch(_: int) -> None:
        mine = []
        while (start := time.perf_counter()) < end:
            service.call("GET", f"/v1/videos/{video}")
            mine.append(time.perf_counter() - start)
        with lock:
            times.extend(mine)

    with ThreadPoolExecutor(watchers) as threads:
        list(threads.map(watch, range(watchers)))
    cuts = statistics.quantiles(times, n=100)
    return {
        "measured": "GET /v1/videos/{id}",
        "watchers": watchers,
        "requests": len(times),
        "requests_per_second": round(len(times) / seconds, 1),
        "median_ms": round(1e3 * cuts[49], 1),
        "p95_ms": round(1e3 * cuts[94], 1),
        "p99_ms": round(1e3 * cuts[98], 1),
    }


def _status(service: Service, video: str) -> str:
    return service.call("GET", f"/v1/videos/{video}")["status"]


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in _PACKAGES}


def main(
    jobs: Annotated[int, typer.Option(help="Jobs of two steps.", min=1)] = 400,
    workers: Annotated[int, typer.Option(help="Workers.", min=1)] = 2,
    watchers: Annotated[int, typer.Option(help="Clients that watch one job.", min=1)] = 50,
    seconds: Annotated[float, typer.Option(help="Of watching.", min=0.5)] = 10.0,
    port: Annotated[int, typer.Option(help="To listen on.")] = 8123,
    output: Annotated[Path | None, typer.Option(help="Folder of the result.")] = None,
) -> None:
    """Measure, and write serving.json."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "database": f"sqlite:///{folder}/jobs.sqlite",
            "content": f"{folder}/content",
            "limits": {"queued": jobs},
            "worker": {
                "factory": "benchmarks.serving.noop:NoopWorker",
                "replicas": workers,
                "cpus": 0.1,
            },
        }
        file = Path(folder) / "settings.yaml"
        file.write_text(yaml.safe_dump(settings))
        command = [sys.executable, "-m", "rainfusion_trt.cli", "serve", "--port", str(port)]
        with guarded([*command, "--settings", str(file)]) as process:
            service = Service(port)
            service.wait(process)
            throughput(service, min(jobs, 20))  # connections and code are warm afterwards
            rows = [throughput(service, jobs), watching(service, watchers, seconds)]
    note = (
        f"The service itself, on {len(os.sched_getaffinity(0))} processors with {workers} workers "
        "that compute nothing and write a small file. Clients run in one Python process on the "
        "same machine and take a part of it. Load average before the start, of other work: "
        f"{load:.1f}."
    )
    facts = {"versions": {**environment()["versions"], **_versions()}}
    typer.echo(write_result("serving", rows, note=note, facts=facts, folder=output))


if __name__ == "__main__":
    run_command(main)
