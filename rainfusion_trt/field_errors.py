"""What pydantic refuses in a file, a request or options, as one line in the package's words.

Every place where such an error can reach a user tells it so. Imports no pydantic: `foreign_errors`,
which tells it where nobody else has, is imported by every command.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

_MOST = 3  # fields that are named in a line
_CHARACTERS = 60  # of a name, and of a value
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")  # of models and of dataclasses
# pydantic's names for the branches of a union, such as "tuple[str, ...]", which it puts between the
# fields of a location. Those of plain types, such as "int", look like fields and are left.
_BRANCH = re.compile(r"(?:literal|tuple|list|dict|function-\w+|constrained-\w+)\[.*\]")
_KEY = "[key]"  # at the end of the location of a name
_OURS = re.compile("^(?:Value error|Assertion failed), ")  # before the words of our validators

# pydantic's type of an error -> what the value must be, with figures of the error's context.
_MUST_BE = {
    "greater_than_equal": "{ge} or more",
    "greater_than": "more than {gt}",
    "less_than_equal": "{le} or less",
    "less_than": "less than {lt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "string_pattern_mismatch": "a text of the form {pattern}",
    "string_too_short": "a text of {min_length} or more characters",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "an integer"),
    "int_parsing_size": "an integer of fewer digits",
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("string_type", "invalid_key"), "a text"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    **dict.fromkeys(("dict_type", "mapping_type", "model_type", "dataclass_type"), "a mapping"),
}


class FieldError(NamedTuple):
    """One field that does not fit.

    Attributes
    ----------
    field
        Its name behind those of what it lies in, with dots; empty of the whole.
    text
        Field, value and remedy.
    unknown
        Whether there is no such field.
    """

    field: str
    text: str
    unknown: bool


def explain_fields(
    error: ValidationError, *, prefix: str = "", whole: str = "", known: Collection[str] = ()
) -> str:
    """The fields that do not fit, their values and what these must be, in one line.

    Parameters
    ----------
    error
        pydantic's.
    prefix, whole, known
        See `field_errors`.
    """
    errors = error.errors(include_url=False)
    return in_one_line(field_errors(errors, prefix=prefix, whole=whole, known=known))


def in_one_line(found: Sequence[FieldError]) -> str:
    """The first few of some errors."""
    more = len(found) - _MOST
    told = "; ".join(each.text for each in found[:_MOST])
    return f"{told}; and {more} more" if more > 0 else told


def field_errors(
    errors: Iterable[Mapping[str, Any]],
    *,
    prefix: str = "",
    whole: str = "",
    known: Collection[str] = (),
) -> list[FieldError]:
    """Errors as pydantic lists them, one for each field.

    Parameters
    ----------
    errors
        Of ``ValidationError.errors()``, or of FastAPI's class of that kind.
    prefix
        What stands before the name of a field where the user sees it.
    whole
        What all of it is called, where no field is to blame.
    known
        Fields of the outermost model, told where there is one that it does not have.
    """
    said: dict[str, list[str]] = {}  # of a field with its value: the ways to mend it
    fields: dict[str, tuple[str, Mapping[str, Any]]] = {}  # of the same: the field, the first error
    for error in errors:
        field = _field(error["loc"])
        name = prefix + field if field else whole
        subject = _subject(name, error)
        remedy = _remedy(error, known if len(error["loc"]) == 1 else ())
        said.setdefault(subject, []).append(remedy)
        fields.setdefault(subject, (field, error))
    inside = tuple(field for field, _ in fields.values())
    return [
        FieldError(field, _sentence(subject, said[subject]), error["type"] in _UNKNOWN)
        for subject, (field, error) in fields.items()
        # Where one branch of a union has found a fault further inside, that is what was meant.
        if not field or _is_name(error) or not any(f.startswith(f"{field}.") for f in inside)
    ]


def _is_name(error: Mapping[str, Any]) -> bool:
    """Whether the name of a field does not fit, and not its value."""
    return error["type"] == "invalid_key" or _KEY in error["loc"][-1:]


def _field(place: Sequence[int | str]) -> str:
    parts = [part for part in map(str, place) if part != _KEY and not _BRANCH.fullmatch(part)]
    return ".".join(ascii_unless_printable(part)[:_CHARACTERS] or "''" for part in parts)


def ascii_unless_printable(text: str) -> str:
    """A name that a file or a client has chosen, without what would command a terminal."""
    return text if text.isprintable() else ascii(text)[1:-1]


def _subject(name: str, error: Mapping[str, Any]) -> str:
    """A field with its value, where that says something.

    That of an unknown field does not, and may be a secret in a wrong place. What our validators say
    names it already, or is about several fields of a mapping.
    """
    value, kind = error.get("input"), error["type"]
    if kind == "missing" or kind in _UNKNOWN:
        return name
    if _is_name(error):
        return f"the name of {name}"
    said = isinstance(value, str) and re.search(rf"(?<!\w){re.escape(value)}(?!\w)", error["msg"])
    if kind in ("value_error", "assertion_error") and (said or isinstance(value, Mapping)):
        return name
    return f"{name}={_shown(value)}" if name else _shown(value)


def _remedy(error: Mapping[str, Any], known: Collection[str]) -> str:
    """What follows the field in the sentence."""
    kind = error["type"]
    if kind == "missing":
        return " is missing: give it"
    if kind in _UNKNOWN:
        others = f", or take one of {', '.join(known)}" if known else ""
        return f" is no field here: leave it out{others}"
    if kind in _MUST_BE:
        figures = error.get("ctx", {}).items()
        return " must be " + _MUST_BE[kind].format_map({n: _plain(v) for n, v in figures})
    return ": " + " ".join(_OURS.sub("", error["msg"]).split())


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _sentence(subject: str, ways: Sequence[str]) -> str:
    first, *others = dict.fromkeys(ways)
    text = " or ".join((first, *(way.removeprefix(" must be ") for way in others)))
    return f"{subject}{text}" if subject else text.removeprefix(": ")


class _Shown(reprlib.Repr):
    """Of any value, however large or deep."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = _CHARACTERS

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # Python writes none of so many digits in decimal, and YAML reads hex
            return f"{hex(x)[:_CHARACTERS]}..."


def _shown(value: Any) -> str:
    text = " ".join(_Shown().repr(value).split())
    return ascii_unless_printable(text)
