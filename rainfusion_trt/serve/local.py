"""Ray on this machine, for as long as the command runs."""

from __future__ import annotations

import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import threading
from typing import Any

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.serve.settings import TOKEN_VARIABLE, ServeSettings, token

logger = logging.getLogger("rainfusion_trt.serve")

APPLICATION = "videos"
_STARTS = 3  # Ray gives up when a busy machine takes half a minute for a process
_STORE_BYTES = 100 * 2**20  # of Ray's memory for objects, which carries nothing big here


def serve_here(settings: ServeSettings, *, host: str, port: int) -> None:
    """Start Ray and the application, and stop them on SIGINT or SIGTERM.

    Raises
    ------
    RainFusionError
        Something is not installed, or the port is taken.
    """
    if importlib.util.find_spec("ray") is None:
        raise BackendUnavailableError("serving needs Ray: pip install 'rainfusion-trt[serve]'")
    if settings.page and importlib.util.find_spec("gradio") is None:
        raise BackendUnavailableError("the page needs Gradio: pip install 'rainfusion-trt[page]'")
    _check_address(host, port)
    _check_places(settings)
    # Before Ray is imported. A machine with few processors, or a busy one, may take a while to
    # answer itself, and to start the HTTP proxy, which Ray ends after three times 5 s.
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_SERVE_QUEUE_LENGTH_RESPONSE_DEADLINE_S", "1")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "30")
    import ray
    from ray import serve

    from rainfusion_trt.serve.ray_app import build

    if token() is None and not _is_loopback(host):
        logger.warning("anybody who reaches %s may use it: set %s", host, TOKEN_VARIABLE)
    application = build(settings.model_dump(mode="json"))
    _start_ray(settings)
    try:
        serve.start(http_options={"host": host, "port": port})
        _deploy(application)
        stop = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):  # now, in place of those that Ray has set
            signal.signal(number, lambda *_: stop.set())
        logger.info("videos are made at http://%s:%d/v1/videos", host, port)
        stop.wait()
        logger.info("stopping: jobs that wait or run go on at the next start")
    finally:
        serve.shutdown()
        ray.shutdown()


def _start_ray(settings: ServeSettings) -> None:
    import ray

    for attempt in range(1, _STARTS + 1):
        try:
            ray.init(
                address="local",
                include_dashboard=False,
                object_store_memory=_STORE_BYTES,
                logging_level=logging.WARNING,
                **_resources(settings),
            )
            return
        except Exception as error:  # of many types
            ray.shutdown()
            if attempt == _STARTS:
                raise BackendUnavailableError(
                    f"Ray does not start here ({error}): see /tmp/ray/session_latest/logs"
                ) from error
            logger.warning("Ray has not started: trying again")


def _deploy(application: Any) -> None:
    from ray import serve

    try:
        serve.run(application, name=APPLICATION, route_prefix="/")
    except RuntimeError as error:
        told = serve.status().applications[APPLICATION].deployments
        raise BackendUnavailableError(
            "the workers do not start: "
            + "; ".join(_cause(found.message) for found in told.values() if found.message)
        ) from error


def _cause(message: str) -> str:
    """What a constructor has raised, of the traceback in which Ray tells it."""
    lines = [line.strip() for line in message.splitlines() if "Error: " in line]
    ours = [line for line in lines if "rainfusion_trt." in line]
    return (ours or lines or [message])[-1].partition("Error: ")[2] or message


def _check_places(settings: ServeSettings) -> None:
    """Database and files as the workers will find them; made if need be."""
    from sqlalchemy.exc import SQLAlchemyError

    from rainfusion_trt.serve.content import open_content
    from rainfusion_trt.serve.store import Store

    open_content(settings.content)
    try:
        Store(settings.database, lease_s=settings.lease_s, attempts=settings.attempts).close()
    except SQLAlchemyError as error:
        reason = getattr(error, "orig", None) or error
        raise InvalidInputError(
            f"the database does not answer ({reason}): check its URL (--database)"
        ) from error


def _resources(settings: ServeSettings) -> dict[str, Any]:
    """CPUs for Ray to count: what the workers are said to take, however few there are here."""
    chosen = settings.worker
    wanted = chosen.cpus * chosen.replicas + 1
    return {"num_cpus": max(os.cpu_count() or 1, int(wanted) + 1)}


def _check_address(host: str, port: int) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(found[0], socket.SOCK_STREAM) as attempt:
            attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            attempt.bind(found[4])
    except OSError as error:
        raise InvalidInputError(
            f"{host}:{port} cannot be listened on ({error.strerror or error}): choose another "
            "--port or --host"
        ) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
