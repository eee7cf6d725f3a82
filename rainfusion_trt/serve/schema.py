"""What the HTTP door answers; with `VideoRequest` the contract, docs/serving/openapi.json."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from rainfusion_trt.serve.jobs import Job
from rainfusion_trt.serve.media import MEDIA
from rainfusion_trt.serve.request import VideoRequest
from rainfusion_trt.serve.worker import Ran


class VideoError(BaseModel):
    """Why a job failed: `cancelled`, `worker_lost`, `generation_failed`, `storage_full`,
    `out_of_memory` or `internal_error`, and one line."""

    code: str
    message: str


class Video(BaseModel):
    """A job. `ran` says what was really run, once it is completed."""

    model_config = ConfigDict(protected_namespaces=())

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    started_at: int | None
    completed_at: int | None
    expires_at: int | None = None
    prompt: str
    size: str
    seconds: str
    remixed_from_video_id: str | None = None
    error: VideoError | None
    request_id: str | None
    attempt: int
    ran: Ran | None

    @classmethod
    def of(cls, job: Job) -> Video:
        """Of a job; size and length are the video's, before it is there those it will have."""
        shape = job.ran or job.request
        return cls(
            id=job.id,
            model=job.model,
            status=job.status,
            progress=job.progress,
            created_at=int(job.created_at),
            started_at=None if job.started_at is None else int(job.started_at),
            completed_at=None if job.completed_at is None else int(job.completed_at),
            prompt=job.request.prompt,
            size=f"{shape.width}x{shape.height}",
            seconds=f"{shape.frames / shape.fps:g}",
            error=VideoError(**dataclasses.asdict(job.error)) if job.error else None,
            request_id=job.request_id,
            attempt=job.attempt,
            ran=job.ran,
        )


class VideoList(BaseModel):
    """A page of jobs. The next one is asked for with ``after=last_id``."""

    object: Literal["list"] = "list"
    data: list[Video]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    """`deleted` is false where the job was not finished, and is cancelled instead."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: bool


class Health(BaseModel):
    """Whether requests are taken, and by how many workers."""

    status: Literal["ok", "loading"]
    model: str | None
    workers: int


class ErrorBody(BaseModel):
    """The error itself."""

    message: str
    type: str
    code: str
    param: str | None


class ErrorAnswer(BaseModel):
    """Every answer of status 400 or more."""

    error: ErrorBody


def request_body() -> dict[str, Any]:
    """OpenAPI's description of the body of ``POST /v1/videos``."""
    body = VideoRequest.model_json_schema(by_alias=False)
    reference = {
        "type": "object",
        "properties": {"image_url": {"type": "string", "description": "data:image/png;base64,..."}},
        "required": ["image_url"],
        "additionalProperties": False,
    }
    file = {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}
    urls, files = (dict.fromkeys((one.field for one in MEDIA), form) for form in (reference, file))
    as_json = {**body, "properties": {**body["properties"], **urls}}
    as_form = {**body, "properties": {**body["properties"], **files}}
    return {
        "required": True,
        "content": {
            "application/json": {"schema": as_json},
            "multipart/form-data": {"schema": as_form},
        },
    }
