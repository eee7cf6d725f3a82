"""The border between a command and its user: errors as one line, and logs on the terminal.

What a user can mend is one line with its cause and a remedy, and ends with status 2, whoever raised
it. What is left is a bug: it shows its traceback, asks for a report and ends with status 1.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.foreign_errors import explain_other

_REPORT = (
    "This is a bug of rainfusion-trt or of a library that it uses: please report it with the lines "
    "above."
)
_log = logging.getLogger(__name__)


def explain(error: BaseException) -> str | None:
    """What to say of an error that a user can mend, in one line; None for a bug."""
    if isinstance(error, RainFusionError):
        return one_line(str(error))
    if _is_usage(error):
        return one_line(_usage(error))
    text = explain_other(error)
    return None if text is None else one_line(text)


def one_line(text: str) -> str:
    """A text without line breaks, and without what would command the terminal."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def report(error: BaseException) -> int:
    """Print an error for the user and return the exit status."""
    line = explain(error)
    if line is None:
        text = "".join(traceback.format_exception(error)) + _REPORT
        typer.echo(text.encode(errors="backslashreplace").decode(), err=True)
        return 1
    _log.debug("where the error below comes from", exc_info=error)
    typer.secho("error: ", fg="red", err=True, nl=False)
    typer.echo(line, err=True)
    return 2


class _OneLineErrors:
    """Mixed into typer's commands: what leaves them is an exit status."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with border():
            return super().make_context(*arguments, **options)  # type: ignore[misc]

    def invoke(self, ctx: Any) -> Any:  # a click.Context, typer's own or the package's
        with border():
            return super().invoke(ctx)  # type: ignore[misc]


class OneLineGroup(_OneLineErrors, TyperGroup):
    """Commands behind the border."""


class OneLineCommand(_OneLineErrors, TyperCommand):
    """One command behind the border."""


def run_command(function: Callable[..., None]) -> NoReturn:
    """Run a function as a command of its own, as `typer.run` does, behind the border."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(cls=OneLineCommand)(function)
    app()
    raise SystemExit(0)


def log_to_terminal(level: int = logging.INFO) -> None:
    """Show the package's log from a level on, and warnings of others, on standard error."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("rainfusion_trt").setLevel(level)


@contextmanager
def border() -> Iterator[None]:
    """A context in a command whose errors end it, told as here; for commands of any class."""
    try:
        yield
    except Exception as error:
        if _is_exit(error) or isinstance(error, BrokenPipeError):
            raise
        raise typer.Exit(report(error)) from error


# Some releases of typer use the package click and some bring their own, so that these are known by
# what they have.
def _is_usage(error: BaseException) -> bool:
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _is_exit(error: BaseException) -> bool:
    """An end that was asked for, such as help."""
    return isinstance(error, (typer.Exit, typer.Abort)) or type(error).__name__.startswith("NoArgs")


def _usage(error: Any) -> str:
    context = getattr(error, "ctx", None)
    text = error.format_message().rstrip(".")
    return text if context is None else f"{text}: see `{context.command_path} --help`"
