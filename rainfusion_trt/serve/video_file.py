"""The answer with a video's file, in ranges of bytes where they are asked for."""

from __future__ import annotations

from fastapi.responses import FileResponse, JSONResponse
from starlette.types import Message, Receive, Scope, Send

from rainfusion_trt.serve.errors import ServiceError

_CODES = {400: "invalid_range", 416: "range_not_satisfiable"}


class VideoFile(FileResponse):
    """A file whose ranges are refused in the form of all errors, and not as plain text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refused: ServiceError | None = None
        kept: dict[str, str] = {}

        async def sent(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] in _CODES:
                headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
                kept.update({k: v for k, v in headers.items() if k == "content-range"})
                refused = _refused(message["status"])
            elif refused is None:
                await send(message)

        await super().__call__(scope, receive, sent)
        if refused is not None:
            answer = JSONResponse(refused.body(), status_code=refused.status, headers=kept)
            await answer(scope, receive, send)


def _refused(status: int) -> ServiceError:
    return ServiceError(
        "the header Range asks for nothing that the file has: send bytes=FIRST-LAST within its "
        "length, or leave it out",
        status=status,
        code=_CODES[status],
    )
