"""Logging and exit codes of the demo model's scripts."""

from __future__ import annotations

import logging

import typer
from rich.logging import RichHandler

from rainfusion_trt.console import report


def run_app(app: typer.Typer, *, show_time: bool) -> None:
    """Run a script's commands; an error that a user can mend is one line and exit status 2."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(show_path=False, show_time=show_time)],
    )
    for name in ("httpx", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        app(standalone_mode=True)
    except Exception as error:
        raise SystemExit(report(error)) from error
