"""Settings of the service: the arguments of its Ray Serve application, in JSON or YAML."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields

_SQLITE = "sqlite:///"
TOKEN_VARIABLE = "RAINFUSION_TRT_TOKEN"  # noqa: S105  (its name)

STEP_LIMIT_S = 1800.0  # a compiled model's first step of a size takes minutes

Host = Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9._-]+)$")]
Count = Annotated[int, Field(ge=1)]


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Limits(_Settings):
    """The most that a request may ask for.

    Attributes
    ----------
    queued : int
        Jobs that wait; further ones are refused with 429.
    upload_bytes : int
        Of a request, with its image.
    image_pixels : int
        Of an image, width times height, looked at before it is decoded.
    prompt_characters : int
        Of the prompt and of the negative prompt.
    clip_pixels : int
        Frames times height times width.
    steps : int
        Denoising steps.
    """

    queued: Count = 64
    upload_bytes: Count = 20 * 2**20
    image_pixels: Count = 2**25
    prompt_characters: Count = 8000
    clip_pixels: Count = 257 * 1088 * 1920
    steps: Count = 200


class WorkerSettings(_Settings):
    """Which worker, and how many.

    Attributes
    ----------
    factory : str
        ``package.module:callable``, see `rainfusion_trt.serve.worker.make_worker`.
    options : mapping
        Its keyword arguments.
    replicas : int
        Workers at the start; Ray's own configuration may say otherwise.
    cpus, gpus
        Of one worker.
    step_limit_s : float
        Seconds from one step to the next, or to the file, after which a worker counts as one that
        hangs: it is ended and replaced, and its job is given to another.
    """

    factory: str = "rainfusion_trt.serve.group_worker:pipeline_worker"
    options: dict[str, Any] = {}
    replicas: Count = 1
    cpus: Annotated[float, Field(ge=0)] = 1.0
    gpus: Annotated[int, Field(ge=0)] = 0
    step_limit_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = STEP_LIMIT_S


class ServeSettings(_Settings):
    """All of the service.

    Attributes
    ----------
    database : str
        SQLAlchemy URL: ``sqlite:////absolute/path``, or ``postgresql+psycopg://...``.
    content : str
        Absolute path of a folder, or a URL that fsspec knows.
    lease_s : float
        Seconds without a sign of life after which the job of a worker is given to another.
    attempts : int
        How often a job may be started in all.
    doors : int
        Replicas of the HTTP door.
    page : bool
        Whether there is a page for people at ``/``, see `rainfusion_trt.serve.page`.
    hosts : tuple of str
        Names that clients may call it by where no token is set, beside localhost and addresses;
        ``*`` is every name. See `rainfusion_trt.serve.gate`.
    """

    database: str
    content: str
    lease_s: Annotated[float, Field(ge=0.5)] = 30.0
    attempts: Count = 2
    doors: Count = 1
    page: bool = False
    hosts: tuple[Host, ...] = ()
    limits: Limits = Limits()
    worker: WorkerSettings = WorkerSettings()

    @field_validator("database")
    @classmethod
    def _absolute_database(cls, url: str) -> str:
        kind, _, place = url.partition("://")
        if kind.partition("+")[0] == "sqlite" and not place.startswith("//"):
            what = "relative" if place.strip("/") else "of one process alone"
            raise ValueError(f"{url} is {what}, and workers run elsewhere: give sqlite:////path")
        return url

    @field_validator("content")
    @classmethod
    def _absolute_content(cls, place: str) -> str:
        if "://" not in place and not Path(place).is_absolute():
            raise ValueError(f"{place} is relative, and workers run elsewhere: give /path or a URL")
        return place

    @model_validator(mode="after")
    def _one_door_with_a_page(self) -> ServeSettings:
        if self.page and self.doors > 1:
            raise ValueError(
                f"page with doors: {self.doors}: what a page knows is in one door; give doors: 1"
            )
        return self

    @classmethod
    def read(cls, given: Any) -> ServeSettings:
        """Those of a mapping, as Ray hands them on.

        Raises
        ------
        InvalidInputError
            They do not fit.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            reason = explain_fields(error, whole="settings", known=cls.model_fields)
            raise InvalidInputError(f"{reason}: see docs/serving.md") from error

    @classmethod
    def in_folder(cls, folder: Path, **given: Any) -> ServeSettings:
        """With database and videos in a folder of this machine, which is made."""
        folder = folder.absolute()
        places = {
            "database": f"{_SQLITE}{folder / 'jobs.sqlite'}",
            "content": str(folder / "content"),
        }
        made = cls.model_validate({**places, **given})
        folder.mkdir(parents=True, exist_ok=True)
        return made


def token() -> str | None:
    """The bearer token that requests have to bring, of the environment; None for no check.

    Raises
    ------
    InvalidInputError
        It is set, and no header could bring it.
    """
    value = os.environ.get(TOKEN_VARIABLE)
    if value is not None and re.fullmatch("[!-~]+", value) is None:
        raise InvalidInputError(
            f"{TOKEN_VARIABLE} is empty, has spaces or line ends, or is not ASCII: set another "
            "token, or unset it"
        )
    return value
