"""Reads the body of ``POST /v1/videos``: JSON, or a form with images."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.media import BY_FIELD
from rainfusion_trt.serve.request import VideoRequest
from rainfusion_trt.serve.worker import Media

_URL = "[image_url]"  # behind a field's name, as OpenAI's client writes it in a form
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE)
_FIELDS = 64
_TEXT_BYTES = 1 << 18  # of one field of a form


async def read_body(request: Request) -> tuple[VideoRequest, Media]:
    """The request and its files, by their names in the service.

    Raises
    ------
    ServiceError
        It is neither, or a field does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields, media = _of_json(await request.body())
    elif kind == "multipart/form-data":
        limits = {"max_files": len(BY_FIELD), "max_fields": _FIELDS, "max_part_size": _TEXT_BYTES}
        async with request.form(**limits) as form:
            fields, media = await _of_form(form)
    else:
        raise ServiceError(
            f"content type {kind[:80]!r}: send application/json or multipart/form-data",
            status=415,
            code="unsupported_media_type",
        )
    key = request.headers.get("idempotency-key")
    if key is not None:
        if fields.get("request_id", key) != key:
            raise ServiceError(
                "request_id and the header Idempotency-Key differ: give one of them",
                param="request_id",
            )
        fields["request_id"] = key
    return VideoRequest.read(fields), media


def _of_json(body: bytes) -> tuple[dict[str, Any], Media]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError("the body is no JSON: send one object", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ServiceError("the body is no JSON object: send one", code="invalid_json")
    found = {field: fields.pop(field, None) for field in BY_FIELD}
    return fields, {
        BY_FIELD[field].name: _of_url(field, reference)
        for field, reference in found.items()
        if reference is not None
    }


def _of_url(field: str, reference: Any) -> bytes:
    """The image of a data URL. Others are not fetched: they would be, from inside the network."""
    url = reference.get("image_url") if isinstance(reference, dict) else None
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    if match is None or len(reference) != 1:
        raise ServiceError(
            f'{field}: send {{"image_url": "data:image/png;base64,..."}}, or the file itself as '
            "multipart/form-data",
            param=field,
        )
    try:
        return base64.b64decode(reference["image_url"][match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(f"{field} is no base64: encode it", param=field) from error


async def _of_form(form: FormData) -> tuple[dict[str, Any], Media]:
    fields: dict[str, Any] = {}
    media: dict[str, bytes] = {}
    for name, value in form.multi_items():
        field = name.removesuffix(_URL)
        medium = BY_FIELD.get(field)
        if name in fields or (medium is not None and medium.name in media):
            raise ServiceError(f"{name[:80]} is given twice: give it once", param=name[:80])
        if medium is not None and name == field and isinstance(value, UploadFile):
            media[medium.name] = await value.read()
        elif medium is not None and name != field and isinstance(value, str):
            media[medium.name] = _of_url(field, {"image_url": value})
        elif isinstance(value, UploadFile):
            raise ServiceError(
                f"{name[:80]} is a file: files of a request are {', '.join(BY_FIELD)}",
                param=name[:80],
            )
        else:
            fields[name] = value
    return fields, media
