"""Fields of dataclasses as options of a command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from rainfusion_trt.spread_options import spread_options


@dataclass(frozen=True)
class Size:
    """How large it is."""

    width: Annotated[int, typer.Option(help="Pixels.", min=1)]
    height: Annotated[int | None, typer.Option("--tall", help="Pixels.")] = None


@dataclass(frozen=True)
class Names:
    """What it is called."""

    name: Annotated[list[str] | None, typer.Option(help="Repeatable.")] = None


def runner(*arguments: str):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @spread_options
    def main(*, context: typer.Context, size: Size, fast: bool = False, names: Names) -> None:
        """Say what was given."""
        print(size, fast, names, sorted(context.params))

    return CliRunner().invoke(app, arguments)


def test_fields_are_options_of_their_own():
    result = runner("--width", "3", "--tall", "4", "--fast", "--name", "a", "--name", "b")
    assert result.exit_code == 0, result.output
    given = f"{Size(3, 4)} True {Names(['a', 'b'])}"
    assert result.output.strip() == f"{given} ['fast', 'height', 'name', 'width']"


def test_defaults_are_those_of_the_fields():
    assert runner("--width", "3").output.startswith(f"{Size(3)} False {Names()}")


def test_options_are_checked_as_written():
    missing, small = runner(), runner("--width", "0")
    assert missing.exit_code == small.exit_code == 2
    assert "--width" in missing.output and "--width" in small.output


def test_help_has_them_under_the_title_of_their_dataclass():
    text = runner("--help").output
    words = ["Say what", "Options", "--fast", "How large it is", "--width", "--tall"]
    places = [text.index(word) for word in [*words, "What it is called", "--name"]]
    assert places == sorted(places)
