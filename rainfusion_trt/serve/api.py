"""The HTTP door: the interface that OpenAI's videos had, on a `VideoService`."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from rainfusion_trt import __version__
from rainfusion_trt.field_errors import field_errors, in_one_line
from rainfusion_trt.serve.body import read_body
from rainfusion_trt.serve.errors import STORAGE_FULL, ServiceError, is_full
from rainfusion_trt.serve.gate import App, Gate
from rainfusion_trt.serve.jobs import Job
from rainfusion_trt.serve.page import add_page
from rainfusion_trt.serve.schema import (
    Deleted,
    ErrorAnswer,
    Health,
    Video,
    VideoList,
    request_body,
)
from rainfusion_trt.serve.service import VideoService
from rainfusion_trt.serve.video_file import VideoFile

logger = logging.getLogger("rainfusion_trt.serve")

_MOST_LISTED = 100
_PRIVATE = {"Cache-Control": "private, no-store"}  # so that a deleted video is gone
_ANSWERS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorAnswer, "description": "The request cannot be served."},
    "5XX": {"model": ErrorAnswer, "description": "The server cannot serve now."},
}
_MP4: dict[int | str, dict[str, Any]] = {
    200: {"description": "The file.", "content": {"video/mp4": {}}}
}


def make_api(service: VideoService, registry: CollectorRegistry | None = None) -> FastAPI:
    """The application without what stands before it, see `make_app`.

    Parameters
    ----------
    service
        The jobs.
    registry
        What /metrics tells beside the jobs.
    """
    registry = CollectorRegistry() if registry is None else registry
    registry.register(_JobGauges(service))
    api = FastAPI(
        title="rainfusion-trt",
        version=__version__,
        summary="Video generation with sparse attention.",
        redoc_url=None,
        docs_url=None,  # its page would load scripts of others
        responses=_ANSWERS,
    )
    _add_errors(api)
    _add_videos(api, service)
    _add_state(api, service, registry)
    return api


def make_app(
    service: VideoService,
    *,
    token: str | None = None,
    page: bool = False,
    hosts: Iterable[str] = (),
) -> App:
    """The application: the interface behind its gate, with /metrics.

    Parameters
    ----------
    service
        The jobs.
    token, hosts
        See `Gate`.
    page
        Whether there is a page for people at ``/``.
    """
    registry = CollectorRegistry()
    api = make_api(service, registry)
    if page:
        add_page(api, service)

    return Gate(
        api,
        token=token,
        most_bytes=service.limits.upload_bytes,
        registry=registry,
        hosts=hosts,
    )


def _add_videos(api: FastAPI, service: VideoService) -> None:
    """Jobs and their videos."""

    @api.post("/v1/videos", openapi_extra={"requestBody": request_body()})
    async def create(request: Request) -> Video:
        """Put a video into the queue."""
        wanted, media = await read_body(request)
        return Video.of(await run_in_threadpool(service.submit, wanted, media))

    @api.get("/v1/videos")
    def list_videos(
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_LISTED)] = 20,
        order: Literal["asc", "desc"] = "desc",
    ) -> VideoList:
        """Jobs, the newest first."""
        jobs, more = service.list(after=after, limit=limit, newest_first=order == "desc")
        data = [Video.of(job) for job in jobs]
        ends = (data[0].id, data[-1].id) if data else (None, None)
        return VideoList(data=data, first_id=ends[0], last_id=ends[1], has_more=more)

    @api.get("/v1/videos/{video_id}")
    def retrieve(video_id: str) -> Video:
        """A job and its progress."""
        return Video.of(service.get(video_id))

    @api.get("/v1/videos/{video_id}/content", response_class=Response, responses=_MP4)
    def content(video_id: str, variant: Literal["video"] = "video") -> Response:
        """The video of a completed job."""
        job, key = service.finished_video(video_id)
        return _file_of(service, job, key)

    @api.delete("/v1/videos/{video_id}")
    def delete(video_id: str) -> Deleted:
        """Delete a finished video; cancel another, which is then kept as failed."""
        return Deleted(id=video_id, deleted=service.remove(video_id))


def _file_of(service: VideoService, job: Job, key: str) -> Response:
    """The answer with a job's video, as a file where it lies here, else piece by piece."""
    name = f"{job.id}.mp4"
    place = service.content.path(key)
    if place is not None and place.is_file():  # in ranges, as players ask for it
        return VideoFile(place, media_type="video/mp4", filename=name, headers=_PRIVATE)
    try:
        pieces = service.content.read(key)
    except FileNotFoundError as error:
        raise ServiceError(
            "the file of this video is gone: make it again", status=404, code="content_missing"
        ) from error
    headers = {
        **_PRIVATE,
        "Content-Length": str(job.content_bytes),
        "Content-Disposition": f'attachment; filename="{name}"',
    }
    return StreamingResponse(pieces, media_type="video/mp4", headers=headers)


def _add_state(api: FastAPI, service: VideoService, registry: CollectorRegistry) -> None:
    """How the service is."""

    @api.get("/health")
    def health(response: Response) -> Health:
        """Whether requests are taken."""
        workers = service.live_workers()
        try:
            return Health(status="ok", model=service.model().model, workers=workers)
        except ServiceError:
            response.status_code = 503
            return Health(status="loading", model=None, workers=workers)

    @api.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


class _JobGauges:
    """Jobs as the store has them, read when Prometheus asks."""

    def __init__(self, service: VideoService) -> None:
        self._service = service

    def describe(self) -> list[Any]:
        return []  # nothing is asked of the store before there is a reader

    def collect(self) -> list[Any]:
        jobs = GaugeMetricFamily("rainfusion_jobs", "Jobs by status.", labels=["status"])
        oldest = GaugeMetricFamily(
            "rainfusion_oldest_queued_seconds", "Age of the job that has waited longest."
        )
        limit = GaugeMetricFamily("rainfusion_queue_limit", "Jobs that may wait.")
        workers = GaugeMetricFamily("rainfusion_workers", "Workers seen within a minute.")
        limit.add_metric([], self._service.limits.queued)
        workers.add_metric([], self._service.live_workers())
        try:
            counts = self._service.counts()
        except ServiceError:  # no worker yet
            return [limit, workers]
        for status in ("queued", "in_progress", "completed", "failed"):
            jobs.add_metric([status], getattr(counts, status))
        oldest.add_metric([], counts.oldest_queued_s)
        return [jobs, oldest, limit, workers]


def _add_errors(api: FastAPI) -> None:
    """Every error in OpenAI's shape, one line each."""

    @api.exception_handler(ServiceError)
    async def refused(_: Request, error: ServiceError) -> JSONResponse:
        return _json(error)

    @api.exception_handler(RequestValidationError)
    async def unfit(_: Request, error: RequestValidationError) -> JSONResponse:
        # Their places begin with where in a request they lie, such as "query".
        found = field_errors([{**each, "loc": each["loc"][1:]} for each in error.errors()])
        return _json(ServiceError(in_one_line(found), param=found[0].field))

    @api.exception_handler(HTTPException)
    async def other(_: Request, error: HTTPException) -> JSONResponse:
        codes = {404: "not_found", 405: "method_not_allowed"}
        message = {404: "there is nothing here: the service is below /v1/videos"}.get(
            error.status_code, str(error.detail)
        )
        code = codes.get(error.status_code, "invalid_request")
        answer = _json(ServiceError(message, status=error.status_code, code=code))
        answer.headers.update(error.headers or {})  # Allow, with 405
        return answer

    @api.exception_handler(ClientDisconnect)
    async def gone(_: Request, error: Exception) -> JSONResponse:
        return _json(
            ServiceError("the request was not sent whole", code="incomplete")
        )  # nobody hears

    @api.exception_handler(OSError)
    @api.exception_handler(SQLAlchemyError)
    async def storage(_: Request, error: Exception) -> JSONResponse:
        logger.error("the store failed", exc_info=error)
        if is_full(error):
            message = "there is no room left on the server: delete videos, or try again later"
            return _json(ServiceError(message, status=507, code=STORAGE_FULL, retry_after=60))
        message = "the store does not answer: try again later"
        code = "storage_unavailable"
        return _json(ServiceError(message, status=503, code=code, retry_after=5))

    @api.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> JSONResponse:
        message = "the server has failed: its log says why"
        return _json(ServiceError(message, status=500, code="internal_error"))


def _json(error: ServiceError) -> JSONResponse:
    return JSONResponse(error.body(), status_code=error.status, headers=error.headers)
