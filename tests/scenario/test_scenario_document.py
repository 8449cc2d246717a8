"""YAML text to plain data with places."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sim.errors import InputError
from sim.scenario.document import Place, parse


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e3", 1000.0),
        (".5e3", 500.0),
        ("1.", 1.0),
        ("-2", -2),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", 1000),
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("", None),
        ("2026-01-01", "2026-01-01"),
        ("12:30:45", "12:30:45"),
        ("'5'", "5"),
        ("'.5e3'", ".5e3"),
        ("-_", "-_"),
        ("-.inf", -math.inf),
        ("1e999", math.inf),
        ("=", "="),
        ("[1, [2.5, x]]", [1, [2.5, "x"]]),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = parse(f"key: {text}\n", "f.yaml")
    assert found.data == {"key": value}
    assert type(found.data["key"]) is type(value)
    assert found.problems == []


def test_nan() -> None:
    assert math.isnan(parse("key: .NaN", "f").data["key"])


def test_places() -> None:
    document = parse("a: 1\nb:\n  c: {d: [5, 6]}\n  e:\n", "f.yaml")
    assert document.value_place(("a",)) == Place("f.yaml", 1, 4)
    assert document.key_place(("b", "c")) == Place("f.yaml", 3, 3)
    assert document.value_place(("b", "c", "d", 1)) == Place("f.yaml", 3, 14)
    assert document.value_place(("b", "e")) == Place("f.yaml", 4, 3), "nothing is there: the key"
    assert document.value_place(("b", "c", "no", "such")) == document.value_place(("b", "c"))
    assert document.value_place(("zzz",)) == Place("f.yaml", 1, 1)


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nlist: [*b, *b]\nmerged:\n  <<: *b\n  y: 3\nboth: {<<: [{x: 7}, *b]}\n"
    document = parse(text, "f")
    assert document.data["list"] == [{"x": 1, "y": 2}] * 2
    assert document.data["list"][0] is not document.data["list"][1], "an override of one must not change the other"
    assert document.data["merged"] == {"x": 1, "y": 3}
    assert document.data["both"] == {"x": 7, "y": 2}
    assert document.problems == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "f:2:1: key `a` is already given in line 1; keep one of the two"),
        ("a: {b: 1, b: 1}", "f:1:11: key `b` is already given in line 1; keep one of the two"),
        ("? [1]\n: 2\n", "f:1:3: a key must be a plain word, not a list or a section"),
        ("a: !!python/name:os.system x", "f:1:4: tag `!!python/name:os.system` is not used in scenarios; remove it"),
        ("<<: 3", "f:1:5: `<<` takes an alias of another section, such as `<<: *base`"),
    ],
)
def test_problems_that_do_not_stop_the_reading(text: str, message: str) -> None:
    assert [str(problem) for problem in parse(text, "f").problems] == [message]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("a:\n\tb: 1", "f:2:1: a tab is used"),
        ("a: b: c", "f:1:5: `:` is not possible here"),
        ("a: [1, 2\nb: 3", "f:1:4: the list that begins with `[` is not closed"),
        ("a: 'x", "f:1:4: the quotes that open here are never closed"),
        ("a: *b", "f:1:4: an alias (`*name`) without an anchor"),
        ("a: @b", "f:1:4: text cannot begin with this character"),
        ('a: "\\q"', "f:1:6: `\\` starts an escape"),
        ("a: 1\nbcd\n", "f:2:4: a key without `:`"),
        ("a:\n  - 1\n b: 2", "f:3:2: this line does not fit"),
        ("---\na: 1\n---\nb: 2", "f:3:1: a second document"),
        ("a: \x07", "f:1:4: character U+0007 is not allowed"),
        ("%YAML 9.0\n---\na: 1", "f:1:1: this YAML version"),
        ("a: }", "f:1:4: a value is missing here"),
        ("a: &x {b: *x}", "f:1:4: an alias here refers to the section that contains it"),
        ("[" * 500, "f: sections are nested too deeply"),
    ],
)
def test_not_yaml(text: str, start: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(text, "f")
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_aliases_cannot_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 6)]
    with pytest.raises(InputError, match="more than 100,000 values"):
        parse("\n".join(lines), "f")
