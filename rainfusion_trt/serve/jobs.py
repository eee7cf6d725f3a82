"""A job: a request, and how far it has come."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Literal

from rainfusion_trt.serve.worker import GenerationRequest, Ran

Status = Literal["queued", "in_progress", "completed", "failed"]

CANCELLED = "cancelled"
WORKER_LOST = "worker_lost"

_ID = re.compile(r"video_[0-9a-f]{32}")


def new_id() -> str:
    """An id that nobody can guess."""
    return f"video_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether a text has the form of our ids, which alone become names of files."""
    return _ID.fullmatch(text) is not None


def media_key(job_id: str, name: str) -> str:
    """Key of a file that came with a job's request."""
    return f"{job_id}.{name}.png"


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a code for programs, and one line."""

    code: str
    message: str


@dataclass(frozen=True)
class Job:
    """A row of the store.

    Attributes
    ----------
    number : int
        Order in which jobs came.
    model : str
        That it was accepted for.
    media : tuple of str
        Names of the files that came with it, see `rainfusion_trt.serve.worker.Media`.
    progress : int
        Percent, 100 only once the video is there.
    attempt : int
        How often it was started.
    created_at, started_at, completed_at : float
        Seconds since 1970, by the clock of the database.
    content : str or None
        Key of the video.
    """

    number: int
    id: str
    model: str
    status: Status
    request: GenerationRequest
    request_id: str | None
    media: tuple[str, ...]
    progress: int
    attempt: int
    cancel_requested: bool
    created_at: float
    started_at: float | None
    completed_at: float | None
    error: JobError | None
    content: str | None
    content_bytes: int | None
    ran: Ran | None

    @property
    def finished(self) -> bool:
        """Whether nothing of it will change again."""
        return self.status in ("completed", "failed")

    def media_key(self, name: str) -> str:
        """Key of one of its files."""
        return media_key(self.id, name)

    def video_key(self, attempt: int) -> str:
        """Key of the video that an attempt makes: one that was given up writes to its own."""
        return f"{self.id}.{attempt}.mp4"
