"""Arguments of public functions, held against the function's own annotations before any work.

Only their kinds: which values fit is said where they are read. pydantic, which reads files here,
would not do: it converts what it takes, and refuses ``range``, ``torch.Size`` and NumPy's integers.
"""

from __future__ import annotations

import functools
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from rainfusion_trt.errors import InvalidInputError

__all__ = ["has_half_character", "shown", "typed"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a text",
    Path: "a path",
    Callable: "a function",
    Mapping: "a mapping",
    type(None): "leave it out",
}
_SHOWN = 80  # characters of a value in a message


def typed(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """A function that refuses arguments which are of none of the types in its annotations.

    Raises
    ------
    InvalidInputError
        Of such a call, before any of the function has run; names the argument, its value and what
        to give instead.

    Examples
    --------
    >>> @typed
    ... def clip(frames: int | None = None) -> None: ...
    >>> clip("81")
    Traceback (most recent call last):
    rainfusion_trt.errors.InvalidInputError: frames='81': give an integer, or leave it out
    """

    @functools.wraps(function)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        hints = _hints(function)
        given = {**dict(zip(hints, args, strict=False)), **kwargs}
        for name, value in given.items():
            hint = hints.get(name, Any)
            if not _fits(value, hint):
                raise InvalidInputError(f"{name}={shown(value)}: give {_in_words(hint)}")
        return function(*args, **kwargs)

    return checked


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Parameter -> annotation, in the order of the signature; read at the first call."""
    code = function.__code__
    hints = get_type_hints(function)
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return {name: hints.get(name, Any) for name in names}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation names."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (Union, types.UnionType):
        return any(_fits(value, each) for each in arguments)
    if kind is Literal:
        return any(isinstance(value, type(choice)) for choice in arguments)
    if kind is Callable:
        return callable(value)
    if kind is bool:
        return isinstance(value, (bool, np.bool_))
    if kind in (int, float):
        number = Integral if kind is int else Real
        return isinstance(value, number) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, os.PathLike)
    if _is_row(kind):
        return _fits_row(value, arguments)
    return isinstance(value, kind)


def _is_row(kind: Any) -> bool:
    return kind in (list, tuple, Sequence, Iterable)


def _fits_row(value: Any, arguments: tuple[Any, ...]) -> bool:
    """Whether a value is a row of such elements; of any kind, as functions take what they can."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        return False
    # What is no sequence may be an iterator, which looking at would use up.
    elements = value if isinstance(value, Sequence) and arguments else ()
    return all(_fits(element, arguments[0]) for element in elements)


def _in_words(hint: Any) -> str:
    """What fits an annotation, such as "a number, or leave it out"."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        ways = list(dict.fromkeys(_in_words(each) for each in arguments))
        if len(ways) > 1 and _WORDS[type(None)] in ways:
            ways.remove(_WORDS[type(None)])
            return f"{_any_of(ways)}, or {_WORDS[type(None)]}"
        return _any_of(ways)
    if kind is Literal:
        return _any_of([repr(choice) for choice in arguments])
    if _is_row(kind):
        return "a sequence" if not arguments else f"a sequence, each {_in_words(arguments[0])}"
    if kind in _WORDS:
        return _WORDS[kind]
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    return f"{article} {kind.__name__} of {kind.__module__.partition('.')[0]}"


def _any_of(ways: list[str]) -> str:
    return " or ".join([", ".join(ways[:-1]), ways[-1]] if len(ways) > 1 else ways)


def shown(value: Any) -> str:
    """A value in one line, for a message."""
    return " ".join(repr(value).split())[:_SHOWN]


def has_half_character(text: str) -> bool:
    """Whether a text holds a lone surrogate, which UTF-8 cannot write and no tokenizer reads.

    JSON can write it, and Python makes it of bytes on a command line that are no UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
