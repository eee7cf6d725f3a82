"""Runs jobs on a worker: claims one, makes its video, and finishes it exactly once."""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from rainfusion_trt.console import explain
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.serve.content import Content
from rainfusion_trt.serve.errors import STORAGE_FULL, is_full
from rainfusion_trt.serve.jobs import Job, JobError
from rainfusion_trt.serve.settings import STEP_LIMIT_S
from rainfusion_trt.serve.step_limit import StepLimit
from rainfusion_trt.serve.store import Store, cancelled, holder
from rainfusion_trt.serve.worker import Ran, Worker, WorkerGone

logger = logging.getLogger("rainfusion_trt.serve")

_QUIET_S = 0.2  # between two signs of life that steps give
_RETRY_S = 0.5  # between two tries to finish a job


class Cancelled(Exception):  # noqa: N818  (no error)
    """The job was cancelled: raised between two steps, and ends the generation."""


class Lost(Exception):  # noqa: N818
    """The job is another worker's by now: raised between two steps, and ends the generation."""


class JobRunner:
    """One worker and its jobs.

    Parameters
    ----------
    store, content
        Where jobs and files are.
    worker
        Makes the videos.
    name
        Of the worker, which no other process has.
    step_limit_s
        See `StepLimit`. A worker that passes it loses its job and has a fault from then on.
    """

    def __init__(
        self,
        store: Store,
        content: Content,
        worker: Worker,
        name: str,
        *,
        step_limit_s: float = STEP_LIMIT_S,
    ) -> None:
        self._store = store
        self._content = content
        self._worker = worker
        self._model = worker.describe().model
        self._step_limit_s = step_limit_s
        self._hung: str | None = None
        self.name = name

    def fault(self) -> str | None:
        """Why this process has to be replaced; None while it works. From any thread."""
        return self._hung or self._worker.fault()

    def run_next(self, turn: str | None = None) -> str | None:
        """Run the oldest job that waits to its end; its id, or None if none waits.

        Parameters
        ----------
        turn
            Whose job it is meanwhile, beside this worker: see `Store.running`.

        Notes
        -----
        Jobs of lost workers wait again once a door calls `Store.sweep`, which it does every second.
        A worker with a fault takes none: it would fail all that wait before it is replaced.
        """
        fault = self.fault()
        if fault is not None:
            logger.warning("%s takes no more jobs: %s", self.name, fault)
            return None
        name = self.name if turn is None else holder(self.name, turn)
        job = self._store.claim(name, self._model)
        if job is None:
            return None
        logger.info("%s: attempt %d on %s", job.id, job.attempt, self.name)
        limit = StepLimit(self._step_limit_s)
        with Pulse(self._store, job, name, limit, self._give_up) as pulse:
            try:
                self._run(job, name, pulse)
            except Lost:
                logger.warning("%s: attempt %d was given to another", job.id, job.attempt)
            except WorkerGone as error:  # as if this process had died: its lease runs out
                logger.error("%s: attempt %d was lost: %s", job.id, job.attempt, error)
                self._give_up(str(error))
            except Cancelled:
                self._insist(lambda: self._store.fail(job, name, cancelled()))
            except SQLAlchemyError:  # the video is no failure: `sweep` gives the job back
                logger.error("%s: attempt %d could not be finished", job.id, job.attempt)
                raise
            except Exception as error:
                failure = _failure(job, error)
                self._insist(lambda: self._store.fail(job, name, failure))
        return job.id

    def _give_up(self, fault: str) -> None:
        """The generation hangs, or what made it has died: this process has to be replaced."""
        self._hung = fault

    def _run(self, job: Job, name: str, pulse: Pulse) -> None:
        with tempfile.TemporaryDirectory(prefix="rainfusion-serve-") as scratch:
            made = Path(scratch) / "video.mp4"
            keys = {name: job.media_key(name) for name in job.media}
            media = {name: b"".join(self._content.read(key)) for name, key in keys.items()}
            pulse.step(0, job.request.steps)
            ran = self._worker.generate(job.request, media, made, pulse.step)
            key = job.video_key(job.attempt)
            size = self._content.put(key, made)
        if not self._complete(job, name, key, size, ran):
            self._content.delete(key)
            raise Cancelled  # or lost, where failing it changes nothing

    def _complete(self, job: Job, name: str, key: str, size: int, ran: Ran) -> bool:
        def finish() -> bool:
            done = self._store.complete(job, name, content=key, size=size, ran=ran)
            return done or self._has(job, key)

        return self._insist(finish)

    def _has(self, job: Job, key: str) -> bool:
        """Whether the job has this video: by a try that was committed before its answer was lost.

        The key is this attempt's own. Without this the file of a completed job would be removed.
        """
        found = self._store.get(job.id)
        return found is not None and found.content == key

    def _insist(self, change: Callable[[], bool]) -> bool:
        """Try a change for as long as a lease lasts: databases restart, disks are cleared.

        What fails for longer leaves the job to the next `sweep`.
        """
        end = time.monotonic() + self._store.lease_s
        while True:
            try:
                return change()
            except SQLAlchemyError:
                if time.monotonic() > end:
                    raise
                logger.warning("the database does not answer: trying again", exc_info=True)
                time.sleep(_RETRY_S)


class Pulse:
    """Signs of life of a running job, from a thread of its own and from every step.

    Parameters
    ----------
    store, job, worker
        Whose lease is renewed.
    limit
        Once it is passed, the lease is left to run out: the job is another worker's then.
    give_up
        Told why, once, when that happens.
    """

    def __init__(
        self,
        store: Store,
        job: Job,
        worker: str,
        limit: StepLimit,
        give_up: Callable[[str], None],
    ) -> None:
        self._store = store
        self._job = job
        self._worker = worker
        self._limit = limit
        self._give_up = give_up
        self._progress = 0
        self._hold = "held"
        self._seen = time.monotonic()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"pulse-{job.id}", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def step(self, done: int, steps: int) -> None:
        """Note progress.

        Raises
        ------
        Cancelled, Lost
            The generation has to end.
        """
        self._limit.step()
        # 100 is for a video that is there: after the last step it is yet to be decoded.
        self._progress = min(99, 100 * done // max(1, steps))
        if time.monotonic() - self._seen >= _QUIET_S or done == 0:
            self._renew()
        if self._hold == "cancelled":
            raise Cancelled
        if self._hold == "lost":
            raise Lost

    def _beat(self) -> None:
        while not self._stop.wait(max(0.0, min(self._store.lease_s / 3, self._limit.left()))):
            fault = self._limit.fault()
            if fault is None:
                self._renew()
                continue
            logger.error("%s: %s", self._job.id, fault)
            with self._lock:
                self._hold = "lost"
            self._give_up(fault)
            return

    def _renew(self) -> None:
        with self._lock:
            try:
                if self._hold == "held":
                    self._hold = self._store.renew(self._job, self._worker, self._progress)
                    self._seen = time.monotonic()
            except SQLAlchemyError:
                logger.warning("%s: its lease was not renewed", self._job.id, exc_info=True)
                if time.monotonic() - self._seen > self._store.lease_s:
                    self._hold = "lost"


def _failure(job: Job, error: Exception) -> JobError:
    """What its user learns of an error; the log has the rest."""
    if is_full(error):
        logger.error("%s: no room left", job.id, exc_info=error)
        return JobError(STORAGE_FULL, "there is no room left for the video: delete others")
    line = explain(error)
    if isinstance(error, RainFusionError) and line is not None:
        logger.warning("%s: %s", job.id, line)
        return JobError("generation_failed", line)
    logger.error("%s failed", job.id, exc_info=error)
    if line is not None and line.startswith("out of memory"):
        return JobError("out_of_memory", "out of memory: ask for a smaller or shorter video")
    return JobError("internal_error", "the video could not be made: the server's log says why")
