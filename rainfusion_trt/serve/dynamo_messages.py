"""Requests and answers of NVIDIA Dynamo's frontend, in the service's own terms."""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Mapping
from typing import Any

from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.media import BY_FIELD, BY_NAME, clean_media
from rainfusion_trt.serve.settings import Limits
from rainfusion_trt.serve.worker import Media, Ran

# Dynamo's own fields beside the prompt, by ours.
_EXTENSIONS = {
    "fps": "fps",
    "num_frames": "frames",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "seed": "seed",
}
_PLAIN = ("prompt", "model", "size", "seconds")
_OTHERS = ("extra_args", "nvext", "output_format", "response_format", "user")


def fields_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of our request in one of Dynamo's frontend.

    Parameters
    ----------
    body
        Dynamo's ``NvCreateVideoRequest``. Fields that it does not know, such as `sparsity`, are
        below ``extra_args.media_passthrough``.

    Returns
    -------
    dict
        For `media_of`, and then for `VideoRequest.read`, which refuses names that it does not know.

    Raises
    ------
    ServiceError
        The same field twice, a stream, or another format than mp4.
    """
    if body.get("stream"):
        raise ServiceError("stream is true: videos are sent whole; leave it out", param="stream")
    if body.get("output_format") not in (None, "mp4"):
        raise ServiceError(
            f"output_format is {body['output_format']!r}: this worker makes mp4; leave it out",
            param="output_format",
        )
    if body.get("response_format") not in (None, "url", "b64_json"):
        raise ServiceError(
            f"response_format is {body['response_format']!r}: give url or b64_json",
            param="response_format",
        )
    known = (*_PLAIN, *_OTHERS, "stream")
    parts = (
        {name: body[name] for name in _PLAIN if name in body},
        {_EXTENSIONS.get(name, name): value for name, value in _part(body, "nvext").items()},
        _part(_part(body, "extra_args"), "media_passthrough"),
        {name: value for name, value in body.items() if name not in known and name[:1] != "_"},
    )
    fields: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if value is None or name == "annotations":  # of Dynamo's frontend
                continue
            if name in fields:
                raise ServiceError(f"{name} is given twice: give it once", param=name)
            fields[name] = value
    return fields


def _part(body: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = body.get(name) or {}
    if not isinstance(part, Mapping):
        raise ServiceError(f"{name} is no object: leave it out", param=name)
    return part


def media_of(fields: dict[str, Any], limits: Limits) -> Media:
    """The pictures among the fields, which are taken out of them, as PNG files.

    Each is sent as a ``data:`` URL or base64.

    Raises
    ------
    ServiceError
        One is something else, as no address is fetched; or together they are too large.
    """
    texts = {one.name: fields.pop(field) for field, one in BY_FIELD.items() if field in fields}
    media = {name: _decoded(BY_NAME[name].field, str(text)) for name, text in texts.items()}
    if sum(map(len, media.values())) > limits.upload_bytes:
        named = " and ".join(BY_NAME[name].field for name in media)
        raise ServiceError(
            f"{named}: more than {limits.upload_bytes} bytes; send smaller images",
            param=BY_NAME[next(iter(media))].field,
        )
    return clean_media(media, limits)


def _decoded(field: str, given: str) -> bytes:
    text = given.partition(";base64,")[2] if given.startswith("data:") else given
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ServiceError(
            f"{field} is no base64: send a data: URL, as addresses are not fetched", param=field
        ) from error


def answer(
    name: str, model: str, body: Mapping[str, Any], ran: Ran, video: bytes
) -> dict[str, Any]:
    """Dynamo's ``NvVideosResponse``, the video within: as base64, or as a ``data:`` URL."""
    text = base64.b64encode(video).decode()
    data: dict[str, Any] = {"output_format": "mp4", "fps": ran.fps}
    if body.get("response_format") == "b64_json":
        data["b64_json"] = text
    else:
        data["url"] = f"data:video/mp4;base64,{text}"
    return {
        "id": name,
        "object": "video",
        "model": model,
        "status": "completed",
        "progress": 100,
        "created": int(time.time()),
        "data": [data],
        "inference_time_s": ran.generate_seconds,
    }
