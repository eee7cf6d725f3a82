"""What pydantic refuses, in one line: field, value and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter
from pydantic import ValidationError as Refused

from rainfusion_trt.console import explain
from rainfusion_trt.field_errors import explain_fields


@dataclass
class Part:
    size: int


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    count: Annotated[int, Field(ge=1)] = 1
    names: tuple[str, ...] = ()


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    one: Inner = Inner()
    many: dict[str, Inner] = {}
    kind: Literal["native"] | tuple[str, ...] = "native"
    part: Part | None = None


def _even(value: Any) -> Any:
    if value % 2:
        raise ValueError("odd numbers\nare not taken: give an even one")
    return value


def refusal(kind: Any, value: Any, **options: Any) -> str:
    with pytest.raises(Refused) as error:
        TypeAdapter(kind).validate_python(value)
    line = explain_fields(error.value, **options)
    assert line.isprintable() and len(line) < 500
    return line


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, None, "an integer"),
        (int, "two", "an integer"),
        (int, 2.5, "an integer"),
        (int, "9" * 5000, "an integer of fewer digits"),
        (float, [], "a number"),
        (float, "x", "a number"),
        (FiniteFloat, float("inf"), "a finite number"),
        (bool, "maybe", "true or false"),
        (bool, [], "true or false"),
        (str, 3, "a text"),
        (list[int], 3, "a list"),
        (tuple[int, ...], 3, "a list"),
        (dict[str, int], 3, "a mapping"),
        (Inner, 3, "a mapping"),
        (Part, 3, "a mapping"),
        (Literal["a", "b"], "c", "'a' or 'b'"),
        (Annotated[int, Field(ge=2)], 1, "2 or more"),
        (Annotated[float, Field(ge=0.5)], 0, "0.5 or more"),
        (Annotated[float, Field(gt=0)], 0, "more than 0"),
        (Annotated[int, Field(le=5)], 6, "5 or less"),
        (Annotated[float, Field(lt=1)], 1.5, "less than 1"),
        (Annotated[str, Field(pattern="^[a-z]+$")], "3", "a text of the form ^[a-z]+$"),
        (Annotated[str, Field(min_length=1)], "", "a text of 1 or more characters"),
        (Literal["a"] | list[int], 3, "'a' or a list"),
    ],
)
def test_values_are_told_with_what_they_must_be(kind, value, words):
    line = refusal(dict[str, kind], {"field": value})
    assert line.startswith("field=") and line.endswith(f" must be {words}")
    assert line.startswith(f"field={value!r} ") or len(str(value)) > 60


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({"one": {"count": 0}}, "one.count=0 must be 1 or more"),
        ({"one": {"names": ["a", 2]}}, "one.names.1=2 must be a text"),
        ({"many": {"a": {"cuont": 1}}}, "many.a.cuont is no field here: leave it out"),
        ({"many": {3: {}}}, "the name of many.3 must be a text"),
        (
            {"many": {3: {"count": 0}}},
            "the name of many.3 must be a text; many.3.count=0 must be 1 or more",
        ),
        ({"many": {"tuple": {"count": []}}}, "many.tuple.count=[] must be an integer"),
        ({"kind": 5}, "kind=5 must be 'native' or a list"),
        ({"kind": ["a", 5]}, "kind.1=5 must be a text"),
        ({"part": {}}, "part.size is missing: give it"),
        (
            {"one": 1, "many": {"a": 2, "b": {"count": "x"}}, "kind": 3, "more": 4},
            "one=1 must be a mapping; many.a=2 must be a mapping; many.b.count='x' must be an "
            "integer; and 2 more",
        ),
        (3, "all of it=3 must be a mapping"),
    ],
)
def test_places_are_named(value, line):
    assert refusal(Outer, value, whole="all of it") == line


def test_names_as_the_user_sees_them():
    line = refusal(Outer, {"one": {"count": 0}}, prefix="file.")
    assert line == "file.one.count=0 must be 1 or more"
    line = refusal(Outer, {"onee": 3}, prefix="file.", known=Outer.model_fields)
    assert line == "file.onee is no field here: leave it out, or take one of one, many, kind, part"


def test_an_unknown_field_may_hold_a_secret():
    assert "hunter2" not in refusal(Outer, {"password": "hunter2", "one": {"password": "hunter2"}})


def test_our_validators_speak_for_themselves():
    even = Annotated[int, AfterValidator(_even)]
    line = refusal(dict[str, even], {"a": 3})
    assert line == "a=3: odd numbers are not taken: give an even one"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10**6,
        "\x1b[2J\n",
        "\ud800",
        b"\xff" * 1000,
        1 << 100_000,
        [[[[[[[[[[[[0]]]]]]]]]]]] * 1000,
        {"a\nb" * 100: "c"},
    ],
    ids=["long", "terminal", "surrogate", "bytes", "digits", "deep", "mapping"],
)
def test_any_value_is_one_line(value):
    assert refusal(dict[str, bool], {"a": value}).startswith("a=")
    assert refusal(Outer, {str(value)[: 10**6] if not isinstance(value, int) else "\r": value})


def test_what_nobody_has_told_is_told_at_the_border():
    with pytest.raises(Refused) as error:
        Outer(one={"count": 0}, kind=5)
    assert explain(error.value) == (
        "a value does not fit (one.count=0 must be 1 or more; kind=5 must be 'native' or a list): "
        "correct it where it is given"
    )
