"""What every door does: take requests, tell of jobs, cancel and delete them."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from rainfusion_trt.serve.content import Content
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.jobs import Job, is_id, media_key, new_id
from rainfusion_trt.serve.media import clean_media
from rainfusion_trt.serve.request import VideoRequest, fingerprint, plan
from rainfusion_trt.serve.settings import Limits, WorkerSettings
from rainfusion_trt.serve.store import Counts, Store, no_page_after
from rainfusion_trt.serve.worker import NO_MEDIA, Media, ModelDescription

_LIVE_S = 60.0  # since a worker was seen
_LOADING_S = 10  # advice while none was


def deployment_of(worker: WorkerSettings) -> str:
    """Tells apart what different workers make, in one database."""
    what = {"factory": worker.factory, "options": worker.options}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


class VideoService:
    """The jobs of one deployment, behind whatever door.

    Parameters
    ----------
    store, content
        Where jobs and files are.
    deployment
        See `deployment_of`.
    limits
        The most that a request may ask for.
    wake
        Called when a job was put into the queue.
    """

    def __init__(
        self,
        store: Store,
        content: Content,
        deployment: str,
        limits: Limits,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.content = content
        self.limits = limits
        self._deployment = deployment
        self._wake = wake

    def model(self) -> ModelDescription:
        """What is made here.

        Raises
        ------
        ServiceError
            No worker has said so yet.
        """
        found = self.store.description(self._deployment)
        if found is None:
            raise ServiceError(
                "no worker is ready yet: try again later",
                status=503,
                code="not_ready",
                retry_after=_LOADING_S,
            )
        return found

    def submit(self, request: VideoRequest, media: Media = NO_MEDIA) -> Job:
        """Put a job into the queue, or find that of the same `request_id`.

        Raises
        ------
        ServiceError
            This server does not make such a video, or has no room for the job.
        """
        mark = fingerprint(request, media)
        if request.request_id is not None:
            # A repeated request is answered whatever the queue and the server are like by now.
            known = self.store.find(request.request_id, mark)
            if known is not None:
                return known
        model = self.model()
        planned = plan(request, model, self.limits, media=media)
        files = clean_media(media, self.limits)
        job_id = new_id()
        created = False
        try:
            for name, data in files.items():
                self._keep(media_key(job_id, name), data)
            job, created = self.store.submit(
                job_id,
                model.model,
                planned,
                fingerprint=mark,
                request_id=request.request_id,
                media=tuple(files),
                limit=self.limits.queued,
            )
        finally:
            if files and not created and not self._may_be_there(job_id):
                for name in files:
                    self.content.delete(media_key(job_id, name))
        if created:
            self._wake()
        return job

    def get(self, job_id: str) -> Job:
        """A job.

        Raises
        ------
        ServiceError
            There is none of that id.
        """
        job = self.store.get(job_id) if is_id(job_id) else None
        if job is None:
            raise _unknown()
        return job

    def list(self, *, after: str | None, limit: int, newest_first: bool) -> tuple[list[Job], bool]:
        """Jobs in the order they came, and whether more follow; see `Store.list`.

        Raises
        ------
        ServiceError
            `after` is the id of none.
        """
        if after is not None and not is_id(after):  # PostgreSQL fails at some texts
            raise no_page_after()
        return self.store.list(after=after, limit=limit, newest_first=newest_first)

    def finished_video(self, job_id: str) -> tuple[Job, str]:
        """A completed job and the key of its video.

        Raises
        ------
        ServiceError
            There is no video, or not yet.
        """
        job = self.get(job_id)
        if job.status == "failed":
            code = job.error.code if job.error else "failed"
            raise ServiceError("this job failed, and has no video", status=404, code=code)
        if job.content is None:
            raise ServiceError(
                f"this video is {job.progress} % done: ask again once its status is completed",
                status=409,
                code="not_completed",
                retry_after=1,
            )
        return job, job.content

    def cancel(self, job_id: str) -> Job:
        """Cancel a job, at once or between two of its steps; a finished one stays as it is.

        Raises
        ------
        ServiceError
            There is none of that id.
        """
        job = self.store.cancel(job_id) if is_id(job_id) else None
        if job is None:
            raise _unknown()
        return job

    def remove(self, job_id: str) -> bool:
        """Delete a finished job with its video, or cancel another; whether it was deleted.

        Raises
        ------
        ServiceError
            There is none of that id.
        """
        job = self.get(job_id)
        if not job.finished:
            self.cancel(job_id)
            return False
        if not self.store.delete(job_id):
            raise _unknown()
        for name in job.media:
            self.content.delete(job.media_key(name))
        for attempt in range(1, job.attempt + 1):  # also what a lost worker left
            self.content.delete(job.video_key(attempt))
        return True

    def counts(self) -> Counts:
        """Jobs by status."""
        return self.store.counts(self.model().model)

    def live_workers(self) -> int:
        """Workers that were seen lately."""
        return self.store.live_workers(self._deployment, _LIVE_S)

    def _may_be_there(self, job_id: str) -> bool:
        """Whether a job was put into the database although its answer was lost."""
        try:
            return self.store.get(job_id) is not None
        except SQLAlchemyError:
            return True

    def _keep(self, key: str, data: bytes) -> None:
        with tempfile.TemporaryDirectory(prefix="rainfusion-serve-") as scratch:
            file = Path(scratch) / "file"
            file.write_bytes(data)
            self.content.put(key, file)


def _unknown() -> ServiceError:
    return ServiceError("there is no video of this id", status=404, code="not_found")
