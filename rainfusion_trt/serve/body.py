"""Reads the body of ``POST /v1/videos``: JSON, or a form with an image."""

from __future__ import annotations

import base64
import binascii
import json
import re
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.request import VideoRequest

_REFERENCE = "input_reference"
_REFERENCE_URL = "input_reference[image_url]"  # as OpenAI's client writes it in a form
_DATA_URL = re.compile(r"data:image/(?:png|jpeg|webp);base64,", re.IGNORECASE)
_FIELDS = 64
_TEXT_BYTES = 1 << 18  # of one field of a form


async def read_body(request: Request) -> tuple[VideoRequest, bytes | None]:
    """The request and its image.

    Raises
    ------
    ServiceError
        It is neither, or a field does not fit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        fields, image = _of_json(await request.body())
    elif kind == "multipart/form-data":
        async with request.form(max_files=1, max_fields=_FIELDS, max_part_size=_TEXT_BYTES) as form:
            fields, image = await _of_form(form)
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
    return VideoRequest.read(fields), image


def _of_json(body: bytes) -> tuple[dict[str, Any], bytes | None]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServiceError("the body is no JSON: send one object", code="invalid_json") from error
    if not isinstance(fields, dict):
        raise ServiceError("the body is no JSON object: send one", code="invalid_json")
    return fields, _of_url(fields.pop(_REFERENCE, None))


def _of_url(reference: Any) -> bytes | None:
    """The image of a data URL. Others are not fetched: they would be, from inside the network."""
    if reference is None:
        return None
    url = reference.get("image_url") if isinstance(reference, dict) else None
    match = _DATA_URL.match(url) if isinstance(url, str) else None
    if match is None or len(reference) != 1:
        raise ServiceError(
            'input_reference: send {"image_url": "data:image/png;base64,..."}, or the file itself '
            "as multipart/form-data",
            param=_REFERENCE,
        )
    try:
        return base64.b64decode(reference["image_url"][match.end() :], validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError("input_reference is no base64: encode it", param=_REFERENCE) from error


async def _of_form(form: FormData) -> tuple[dict[str, Any], bytes | None]:
    fields: dict[str, Any] = {}
    image = None
    for name, value in form.multi_items():
        if name in fields or (name in (_REFERENCE, _REFERENCE_URL) and image is not None):
            raise ServiceError(f"{name[:80]} is given twice: give it once", param=name[:80])
        if name == _REFERENCE and isinstance(value, UploadFile):
            image = await value.read()
        elif name == _REFERENCE_URL and isinstance(value, str):
            image = _of_url({"image_url": value})
        elif isinstance(value, UploadFile):
            raise ServiceError(
                f"{name[:80]} is a file: the one file of a request is input_reference",
                param=name[:80],
            )
        else:
            fields[name] = value
    return fields, image
