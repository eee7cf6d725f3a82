"""Logging and exit codes of the demo model's scripts."""

from __future__ import annotations

import logging

import typer
from rich.logging import RichHandler

from rainfusion_trt.errors import RainFusionError

logger = logging.getLogger("rainfusion_trt")


def run_app(app: typer.Typer, *, show_time: bool) -> None:
    """Run a script's commands; an error of ours is one line and exit status 2."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(show_path=False, show_time=show_time)],
    )
    for name in ("httpx", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        app(standalone_mode=True)
    except RainFusionError as error:
        logger.error("%s", error)
        raise SystemExit(2) from error
