"""Words that docstrings, comments and pages do without: the subject is a request, a client, a replica, not a person."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BANNED = re.compile(
    r"\b(who|whom|whoever|nobody|somebody|anybody|everybody|someone|anyone|everyone|what of)\b", re.IGNORECASE
)
CODE = ("sim", "policies", "gpu_calibrate", "benchmarks", "tests")
PAGES = ("README.md", "docs/*.md", "scenarios/*.yaml")


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and docstrings of a Python file, by line."""
    source = path.read_text(encoding="utf-8")
    before = tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        starts = before in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and starts):
            yield token.start[0], token.string
        if token.type not in (tokenize.COMMENT, tokenize.NL):
            before = token.type


def found_in(texts_of: Iterator[tuple[int, str]], path: Path) -> list[str]:
    """Place and word of each banned one."""
    return [
        f"{path}:{line + text[: match.start()].count(chr(10))}: {match[0]}"
        for line, text in texts_of
        for match in BANNED.finditer(text)
    ]


@pytest.mark.parametrize("folder", CODE)
def test_docstrings_and_comments(folder: str) -> None:
    paths = sorted((ROOT / folder).rglob("*.py"))
    assert paths
    assert [each for path in paths if path != Path(__file__) for each in found_in(texts(path), path)] == []


@pytest.mark.parametrize("pattern", PAGES)
def test_pages(pattern: str) -> None:
    paths = sorted(ROOT.glob(pattern))
    assert paths
    assert [each for path in paths for each in found_in(iter([(1, path.read_text(encoding="utf-8"))]), path)] == []


def test_a_banned_word_is_found(tmp_path: Path) -> None:
    """In docstrings and comments, not in names or other strings."""
    path = tmp_path / "x.py"
    path.write_text(
        '"""Tells\nwho waits."""\nwho = "nobody"\n\n\ndef f() -> None:\n    """What of it."""\n    f(who)  # anyone\n'
    )
    assert [each.rpartition(":")[0].rpartition(":")[2] for each in found_in(texts(path), path)] == ["2", "7", "8"]
