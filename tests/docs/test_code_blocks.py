"""What documents tell people to type: commands, options, names and arguments that exist."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

import rainfusion_trt
from rainfusion_trt.cli import app
from rainfusion_trt.engine.recipe import load_recipe
from rainfusion_trt.runtime.pipeline import Pipeline

ROOT = Path(__file__).resolve().parents[2]
_PLACES = ("*.md", "docs/*.md", "engines/*.md", "plugins/**/*.md", "benchmarks/**/*.md")
# A changelog also has names that are no more.
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for place in _PLACES
    for path in ROOT.glob(place)
    if path.name != "CHANGELOG.md"
)
FENCE = re.compile(r"^```(\w*)$\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
COMMANDS = typer.main.get_command(app).commands
ELLIPSIS = "..."  # in a command: the rest is the reader's
_NEED_MODEL = ("run", "serve", "calibrate-cache")
_SAYS_MODEL = ("--model", "--engine", "--onnx", "--demo", "--settings")


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    return [code for language, code in FENCE.findall(text) if language in languages]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command of a shell block."""
    code = re.sub(r"<<'EOF'\n.*?\nEOF$", "", code, flags=re.DOTALL | re.MULTILINE)
    line = ""
    for piece in code.replace("\\\n", " ").splitlines(keepends=True):
        line += piece
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            continue
        line = ""
        for is_end, command in itertools.groupby(words, lambda word: set(word) <= set("&;|")):
            if not is_end:
                yield [word for word in command if not re.fullmatch(r"[A-Z_]+=\S*", word)]


def refused(words: list[str]) -> str | None:
    """What `rainfusion-trt` has against these words behind it; nothing is run."""
    name, *arguments = [word for word in words if word != ELLIPSIS]
    if name not in COMMANDS:
        return f"no command {name}"
    try:
        COMMANDS[name].make_context(name, arguments)
    except Exception as error:  # of click, or of typer's own copy of it
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "MissingParameter" and ELLIPSIS in words:
            return None
        return f"{name}: {error.format_message()}"
    if name in _NEED_MODEL and not {*_SAYS_MODEL, ELLIPSIS} & set(words):
        return f"{name}: nothing says which model it is"
    return None


def wrong(words: list[str]) -> str | None:
    """What is wrong with one command, as far as it is this project's."""
    if words[0] == "rainfusion-trt":
        return refused(words[1:])
    if words[0] in ("bash", "python") and words[1].startswith("scripts/"):
        return None if (ROOT / words[1]).is_file() else f"no {words[1]}"
    if "-m" in words and (module := words[words.index("-m") + 1]).startswith("benchmarks"):
        file = ROOT / module.replace(".", "/")
        found = file.with_suffix(".py").is_file() or (file / "__main__.py").is_file()
        return None if found else f"no module {module}"
    if words[0] == "pip":
        wanted = {
            extra
            for word in words
            if "." in word or "rainfusion" in word
            for listed in re.findall(r"\[(.+)\]$", word)
            for extra in listed.split(",")
        }
        extras = re.findall(r"^([a-z]+) = \[", read("pyproject.toml"), re.MULTILINE)
        missing = sorted(wanted - set(extras))
        return f"no extra {', '.join(missing)}" if missing else None
    return None


def too_narrow(code: str) -> str | None:
    """An export of one size that the recipe of the same block has no use for."""
    found = {words[1]: words for words in commands(code) if words[:1] == ["rainfusion-trt"]}
    if not {"export", "build-engine"} <= found.keys():
        return None
    name = found["build-engine"][found["build-engine"].index("--recipe") + 1]
    recipe = load_recipe(Path(name).name.removesuffix(".yaml"))
    profiles = len(recipe.sizes or recipe.shapes or {})
    if profiles > 1 and "--dynamic" not in found["export"]:
        return f"{name} has {profiles} sizes, and the export is not --dynamic"
    return None


def called(name: str) -> object | None:
    """What a call in a Python block is of, if it is this project's."""
    if name == "pipe":
        return Pipeline.__call__
    first, _, rest = name.partition(".")
    if first == "rainfusion_trt" and rest and "." not in rest:
        return getattr(rainfusion_trt, rest)
    return getattr(rainfusion_trt, name) if name in rainfusion_trt.__all__ else None


def wrong_python(code: str) -> Iterator[str]:
    """Imports, names and arguments of a Python block that do not exist."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rainfusion_trt"):
            module = importlib.import_module(node.module or "")
            yield from (
                f"{node.module}.{a.name}" for a in node.names if not hasattr(module, a.name)
            )
        elif isinstance(node, ast.Call):
            function = called(ast.unparse(node.func))
            given: dict[str, object] = {k.arg: None for k in node.keywords if k.arg}
            if function is None or len(given) < len(node.keywords):
                continue
            first = [None] if function is Pipeline.__call__ else []
            if function is Pipeline and not {"model", "engine", "onnx", "pipe"} & given.keys():
                yield f"{ast.unparse(node)}: nothing says which model it is"
            try:
                inspect.signature(function).bind(*first, *node.args, **given)
            except TypeError as error:
                yield f"{ast.unparse(node)}: {error}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_blocks_exist(document):
    shell = blocks(read(document), "bash")
    found = [(words, wrong(words)) for code in shell for words in commands(code) if words]
    assert [pair for pair in found if pair[1]] == []
    assert [text for text in map(too_narrow, shell) if text] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_of_blocks_exists(document):
    assert [text for code in blocks(read(document), "python") for text in wrong_python(code)] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_options_of_commands_in_the_text_exist(document):
    """Such as `run --pose-video`; values may be left out there."""
    unknown = []
    for span in SPAN.findall(FENCE.sub("", read(document))):
        words = span.removeprefix("rainfusion-trt ").split()
        if words and words[0] in COMMANDS:
            known = {
                option
                for parameter in COMMANDS[words[0]].params
                for option in (*parameter.opts, *parameter.secondary_opts, "--help")
            }
            options = [word.partition("=")[0] for word in words if word.startswith("--")]
            unknown += [(span, option) for option in options if option not in known]
    assert unknown == []


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rainfusion-trt run --prompt a --checkpoint b --no-such c", "--no-such"),
        ("rainfusion-trt run --prompt a", "--checkpoint"),
        ("rainfusion-trt run --steps many ...", "--steps"),
        ("rainfusion-trt run --prompt a --checkpoint b", "which model"),
        ("rainfusion-trt bild", "no command bild"),
        ("bash scripts/no.sh # comment", "no scripts/no.sh"),
        ("python -m benchmarks.no", "no module benchmarks.no"),
        ("RAINFUSION=1 pip install -e '.[export,nothing]'", "no extra nothing"),
    ],
)
def test_what_does_not_exist_is_found(command, words):
    (found,) = commands(f"{command}\n")
    assert words in (wrong(found) or "")


def test_what_does_not_exist_in_python_is_found():
    code = (
        "from rainfusion_trt import Nothing\n"
        "rainfusion_trt.enable(pipe.transformer, sparsty=0.5)\n"
        "pipe('a', 'b')\n"
        "load_graph()\n"
        "Pipeline(checkpoint='a')\n"
    )
    assert len(list(wrong_python(code))) == 5


def test_an_export_of_one_size_for_a_recipe_of_several_is_found():
    export = "rainfusion-trt export --model wan2.1-14b"
    build = "rainfusion-trt build-engine a.onnx --recipe wan2.1-14b"
    assert "2 sizes" in (too_narrow(f"{export}\n{build}\n") or "")
    assert too_narrow(f"{export} --dynamic\n{build}\n") is None
