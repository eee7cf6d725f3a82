"""Stands before the application: who may enter, how much they bring, and what is counted."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram

from rainfusion_trt.serve.errors import ServiceError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_OPEN = ("/health",)  # for load balancers, which bring no token


class Gate:
    """An ASGI application around another.

    Parameters
    ----------
    app
        The other.
    token
        That every request has to bring, but those to /health; None for no check.
    most_bytes
        Of the body of a request.
    registry
        Of Prometheus, which the counts go to.
    hosts
        Names of this service, beside localhost and all addresses. Without a token, requests for
        another `Host` are refused: a page of another site may let its own name lead here (DNS
        rebinding), and is then no other site to a browser. ``*`` is every name.
    """

    def __init__(
        self,
        app: App,
        *,
        token: str | None,
        most_bytes: int,
        registry: CollectorRegistry,
        hosts: Iterable[str] = (),
    ) -> None:
        self._app = app
        self._hosts = frozenset(host.lower().removesuffix(".") for host in hosts)
        self._token = None if token is None else _digest(token)
        self._most = most_bytes
        labels = ("method", "route", "status")
        self._requests = Counter(
            "rainfusion_http_requests", "Answered requests.", labels, registry=registry
        )
        self._seconds = Histogram(
            "rainfusion_http_request_seconds",
            "Time of an answer.",
            ("method", "route"),
            registry=registry,
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none here
            await send({"type": "websocket.close", "code": 1000})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        status = 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._guarded(scope, receive, sent)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = getattr(scope.get("route"), "path", "other")  # a path would be without bound
            self._requests.labels(method, route, status).inc()
            self._seconds.labels(method, route).observe(time.perf_counter() - start)

    async def _guarded(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        if self._token is not None and scope["path"] not in _OPEN:
            known = hmac.compare_digest(_digest(_token_of(headers)), self._token)
            if not known:
                await _answer(send, _unauthorised(scope["path"]))
                return
        host = headers.get(b"host", b"").decode("latin-1")
        if self._token is None and scope["path"] not in _OPEN and not self._is_ours(host):
            error = ServiceError(
                f"the request is for the host {host[:80]!r}, which is no name of this service: use "
                "its address, add the name to its hosts (--allow-host), or give it a token",
                status=403,
                code="unknown_host",
            )
            await _answer(send, error)
            return
        if scope["method"] not in _READING and _is_foreign(headers):
            error = ServiceError(
                "the request comes from a page of another site: call the service directly",
                status=403,
                code="cross_origin",
            )
            await _answer(send, error)
            return
        length = headers.get(b"content-length", b"0")
        # Python reads no number of thousands of digits.
        if not length.isdigit() or len(length) > _DIGITS or int(length) > self._most:
            await _answer(send, self._too_large())
            return
        came = 0

        async def counted() -> Message:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise self._too_large()  # which the application answers, as any other
            return message

        await self._app(scope, counted, send)

    def _is_ours(self, host: str) -> bool:
        """Whether the name of a request, with or without its port, cannot be another site's."""
        if not host:  # of a program, as browsers always send one
            return True
        name = _name_of(host)
        known = name == "localhost" or name.endswith(".localhost")
        return known or _is_address(name) or name in self._hosts or "*" in self._hosts

    def _too_large(self) -> ServiceError:
        return ServiceError(
            f"the request has more than {self._most} bytes: send a smaller image",
            status=413,
            code="too_large",
        )


_DIGITS = 18  # of a number of bytes
_READING = ("GET", "HEAD", "OPTIONS")
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH")


def _token_of(headers: dict[bytes, bytes]) -> str:
    """What is brought as Bearer, or, by browsers that were asked, as the password of Basic."""
    given = headers.get(b"authorization", b"").decode("latin-1")
    scheme, _, token = given.partition(" ")
    if scheme.lower() == "bearer":
        return token.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(token, validate=True).decode("latin-1").partition(":")[2]
    return ""


def _unauthorised(path: str) -> ServiceError:
    return ServiceError(
        "the token is missing or wrong: send the header Authorization: Bearer TOKEN",
        status=401,
        code="invalid_api_key",
        challenge="Bearer" if path.startswith("/v1/") else 'Basic realm="videos"',
    )


def _name_of(host: str) -> str:
    """The name or address of a ``Host`` header, without its port."""
    name = host.strip().lower()
    if name.startswith("["):  # an address of IPv6
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(headers: dict[bytes, bytes]) -> bool:
    """Whether a browser sends it for a page of another site: forms may go anywhere, also here."""
    origin = headers.get(b"origin")
    return origin is not None and origin.partition(b"://")[2] != headers.get(b"host", b"")


def _digest(token: str) -> bytes:
    """Of one length, so that comparing tells nothing about that of the token."""
    return hashlib.sha256(token.encode()).digest()


async def _answer(send: Send, error: ServiceError) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body))}
    headers |= {name.lower(): value for name, value in error.headers.items()}
    lines = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
