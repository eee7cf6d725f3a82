"""The Ray Serve application: workers that hold a GPU each, and the HTTP door before them.

Ray places, routes, scales, checks and replaces; the store says whose turn it is. For every job that
waits or runs, the door has one *turn* under way, a call of any worker that runs the oldest job. So
Ray routes turns to workers that are free, its autoscaling sees them, and a turn that is lost loses
no job: the door sends another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import uuid
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.serve.api import make_app
from rainfusion_trt.serve.content import open_content
from rainfusion_trt.serve.gate import App
from rainfusion_trt.serve.runner import JobRunner
from rainfusion_trt.serve.service import VideoService, deployment_of
from rainfusion_trt.serve.settings import TOKEN_VARIABLE, ServeSettings, token
from rainfusion_trt.serve.store import Store
from rainfusion_trt.serve.worker import make_worker

logger = logging.getLogger("rainfusion_trt.serve")

_LOOK_S = 1.0  # between two looks for jobs that nobody runs
_HEALTH_S = 5.0  # between two signs of life of a worker
_MOST_TURNS = 32  # under way of one door: each that waits asks all workers whether they are free
_TRIES = 2  # of a worker's start: what fails twice is wrong settings, more often than not
_STOP_S = 60.0  # that a running job has to end when its worker is to stop
_LOGGING = {"enable_access_log": False}  # /metrics counts requests


def _open_store(settings: ServeSettings) -> Store:
    return Store(settings.database, lease_s=settings.lease_s, attempts=settings.attempts)


class VideoWorker:
    """One worker and the device that it holds."""

    def __init__(self, settings: dict[str, Any]) -> None:
        given = ServeSettings.read(settings)
        chosen = given.worker
        self._store = _open_store(given)
        self._worker = make_worker(chosen.factory, chosen.options, gpus=chosen.gpus)
        self._name = f"worker-{uuid.uuid4().hex}"
        content = open_content(given.content)
        self._runner = JobRunner(
            self._store, content, self._worker, self._name, step_limit_s=chosen.step_limit_s
        )
        self._store.register(self._name, deployment_of(chosen), self._worker.describe())

    async def take_turn(self, turn: str) -> str | None:
        """Run the oldest job that waits, in a thread: health checks have to be answered."""
        return await asyncio.to_thread(self._runner.run_next, turn)

    async def check_health(self) -> None:
        """Called by Ray, which replaces a worker where this raises."""
        fault = self._runner.fault()
        if fault is not None:
            raise RuntimeError(fault)
        await asyncio.to_thread(self._store.seen, self._name)


class Door:
    """The HTTP interface, and the turns of the workers."""

    def __init__(
        self, settings: dict[str, Any], workers: DeploymentHandle, guarded: bool = False
    ) -> None:
        self._token = token()
        if guarded and self._token is None:  # it would be open to all
            raise InvalidInputError(
                f"{TOKEN_VARIABLE} is set where the application was built, and not on this machine "
                "of the cluster: set it on all"
            )
        self._settings = ServeSettings.read(settings)
        self._store = _open_store(self._settings)
        self._deployment = deployment_of(self._settings.worker)
        self._turns = Turns(self._store, self._deployment, workers)
        self._turns.start()

    def __serve_build_asgi_app__(self) -> App:  # noqa: N807  (Ray's name)
        service = VideoService(
            self._store,
            open_content(self._settings.content),
            self._deployment,
            self._settings.limits,
            wake=self._turns.wake,
        )
        given = self._settings
        return make_app(service, token=self._token, page=given.page, hosts=given.hosts)


class Turns:
    """Calls of workers, as many as there are jobs; in a thread and an event loop of its own."""

    def __init__(self, store: Store, deployment: str, workers: DeploymentHandle) -> None:
        self._store = store
        self._deployment = deployment
        self._workers = workers
        self._under_way: set[str] = set()  # ids
        self._ran: set[str] = set()  # those of them whose jobs were seen running
        self._tasks: set[asyncio.Task[None]] = set()  # of the turns, which a loop does not keep
        self._loop = asyncio.new_event_loop()
        self._wanted = asyncio.Event()

    def start(self) -> None:
        """Begin, for as long as the process lives."""
        work = self._loop.run_until_complete
        threading.Thread(target=work, args=(self._run(),), name="turns", daemon=True).start()

    def wake(self) -> None:
        """A job has come; from any thread."""
        self._loop.call_soon_threadsafe(self._wanted.set)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), _LOOK_S)
            self._wanted.clear()
            try:
                missing = await asyncio.to_thread(self._missing)
            except Exception:
                logger.exception("the store does not answer: looking again")
                continue
            for _ in range(missing):
                turn = uuid.uuid4().hex
                self._under_way.add(turn)
                self._tasks.add(task := self._loop.create_task(self._turn(turn)))
                task.add_done_callback(self._tasks.discard)

    def _missing(self) -> int:
        """Turns to be sent."""
        self._store.sweep()
        made = self._store.description(self._deployment)
        if made is None:
            return 0
        wanted = min(self._store.unfinished(made.model), _MOST_TURNS)
        return wanted - self._of_use(self._store.running())

    def _of_use(self, running: set[str]) -> int:
        """Turns under way that run a job or will.

        One whose job ran and does not run any more ends at once, or its worker hangs: until Ray has
        replaced that, jobs need other turns. A turn too many finds no job, and ends.
        """
        under_way = set(self._under_way)
        self._ran = (self._ran | running) & under_way
        return len(under_way - (self._ran - running))

    async def _turn(self, turn: str) -> None:
        try:
            if await self._workers.take_turn.remote(turn) is not None:
                self._wanted.set()  # there may be more jobs than turns
        except Exception as error:  # a worker has died: its job's lease runs out
            logger.warning("a turn was lost: %s", type(error).__name__)
            await asyncio.sleep(_LOOK_S)
        finally:
            self._under_way.discard(turn)


def build(settings: dict[str, Any]) -> serve.Application:
    """The application, of `ServeSettings` in JSON: Ray's ``import_path`` and ``args``.

    Raises
    ------
    InvalidInputError
        The settings do not fit.
    """
    given = ServeSettings.read(settings)
    guarded = token() is not None  # a wrong one is refused here, and not by a replica
    chosen = given.worker
    workers = serve.deployment(
        VideoWorker,
        name="worker",
        num_replicas=chosen.replicas,
        max_ongoing_requests=1,
        max_queued_requests=-1,  # as long as the store's queue, which is bounded
        max_constructor_retry_count=_TRIES,
        health_check_period_s=_HEALTH_S,
        graceful_shutdown_timeout_s=_STOP_S,
        ray_actor_options={"num_cpus": chosen.cpus, "num_gpus": chosen.gpus},
        logging_config=_LOGGING,
    ).bind(settings)
    door = serve.deployment(
        serve.ingress()(Door),
        name="door",
        num_replicas=given.doors,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
        logging_config=_LOGGING,
    )
    return door.bind(settings, workers, guarded)
