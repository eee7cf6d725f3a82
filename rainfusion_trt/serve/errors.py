"""What the service refuses, with its HTTP status and its code in OpenAI's error shape."""

from __future__ import annotations

import errno
from typing import Any

from rainfusion_trt.console import one_line
from rainfusion_trt.errors import RainFusionError

STORAGE_FULL = "storage_full"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class ServiceError(RainFusionError):
    """A request that is answered with an error.

    Parameters
    ----------
    message : str
        One line that names the value and the remedy.
    status : int
        Of HTTP.
    code : str
        For programs.
    param : str, optional
        The field that it is about.
    retry_after : int, optional
        Seconds after which trying again makes sense.
    challenge : str, optional
        How to say who one is.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str = "invalid_value",
        param: str | None = None,
        retry_after: int | None = None,
        challenge: str | None = None,
    ) -> None:
        super().__init__(one_line(message))
        self.status = status
        self.code = code
        self.param = param
        self.retry_after = retry_after
        self.challenge = challenge

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.challenge is not None:
            headers["WWW-Authenticate"] = self.challenge
        return headers

    def body(self) -> dict[str, Any]:
        """The answer."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 401:
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        return {
            "error": {"message": str(self), "type": kind, "code": self.code, "param": self.param}
        }


def is_full(error: BaseException) -> bool:
    """Whether a disk, a quota or a database had no room left, in an error or its causes."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        if "disk is full" in str(seen) or "No space left on device" in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
